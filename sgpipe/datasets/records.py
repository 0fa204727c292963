"""Records of a data set whose reader is plain Python: one `Record` per image, checked in bounded memory like Visual Genome's."""

from collections.abc import Generator, Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
from msgspec import Struct
from numpy.typing import NDArray

from sgpipe.datasets import rows
from sgpipe.datasets.base import Batch, Id, Invalid, Pixels, Work
from sgpipe.relations.aliases import PredicateMap, plain_name

AT_ONCE = 1024


class ObjectRecord(Struct, frozen=True, gc=False):
    """An object; `box` is x, y, w, h in pixels of the annotated size."""

    object_id: Id
    name: str
    box: tuple[float, float, float, float]


class RelationRecord(Struct, frozen=True, gc=False):
    """`subject` and `object` are ids of objects of the same image; the predicate is free text or a class."""

    relationship_id: Id
    subject: Id
    predicate: str
    object: Id


class Record(Struct, frozen=True):
    """An annotated image, sizes in pixels. Ids of objects and relations need to differ within an image alone."""

    image_id: Id
    width: Pixels
    height: Pixels
    objects: tuple[ObjectRecord, ...] = ()
    relations: tuple[RelationRecord, ...] = ()
    url: str | None = None


def batches(file: Path, records: Iterable[Record | Invalid], work: Work) -> Generator[Batch, None, None]:
    """Every record of `file` with its objects and relations, kept or rejected: the body of a data set's `relations`."""
    codes_of, seen = rows.PredicateCodes(PredicateMap.load()), set[int]()
    pending, first = iter(records), 0
    while chunk := list(islice(pending, AT_ONCE)):
        yield from _chunk(file, chunk, first, seen, codes_of, work)
        first += len(chunk)
    work.progress(file, file.stat().st_size)


def _numbers(values: Iterable[int]) -> NDArray[np.int64]:
    return np.array(list(values), dtype=np.int64)


def _chunk(
    file: Path, chunk: list[Record | Invalid], first: int, seen: set[int], codes_of: rows.PredicateCodes, work: Work
) -> Iterator[Batch]:
    numbered = [(first + i, record) for i, record in enumerate(chunk) if isinstance(record, Record)]
    index, records = [number for number, _ in numbered], [record for _, record in numbered]
    ids, width, height = sizes = np.array(
        [(record.image_id, record.width, record.height) for record in records], np.int64
    ).reshape(-1, 3).T  # fmt: skip
    invalid = [record for record in chunk if isinstance(record, Invalid)]
    again, kept, rejected = rows.image_tables(file.name, index, sizes, [record.url for record in records], seen, invalid)
    yield Batch("images", file, len(chunk), kept, rejected)
    codes = np.where(again, rows.CODE["image repeated"], 0)

    flat = [each for record in records for each in record.objects]
    items = rows.Items.of(file.name, index, ids, codes, [len(record.objects) for record in records])
    raw_names = [each.name for each in flat]
    boxes = np.array([each.box for each in flat], dtype=np.float64).reshape(-1, 4)
    names = pa.array(map(plain_name, raw_names), pa.string())
    objects = rows.Objects.of(_numbers(each.object_id for each in flat), names, boxes, width[items.owner], height[items.owner])
    keep, kept, rejected = rows.object_tables(items, objects, raw_names, boxes)
    derived = rows.geometric_relations(work.geometric, kept, objects.boxes[keep])
    yield Batch("objects", file, len(flat), kept, rejected, derived)

    place: dict[tuple[int, int], int] = {}
    for row, key in enumerate(zip(items.owner.tolist(), objects.ids.tolist(), strict=True)):
        place.setdefault(key, row)
    said = [each for record in records for each in record.relations]
    items = rows.Items.of(file.name, index, ids, codes, [len(record.relations) for record in records])
    owners, unknown = items.owner.tolist(), len(flat)
    sides = [each.subject for each in said], [each.object for each in said]
    joined = [_numbers(place.get(key, unknown) for key in zip(owners, side, strict=True)) for side in sides]
    no_object = np.array([rows.CODE["object unknown"]])
    ends = objects.followed_by(rows.Objects(np.array([-1]), pa.chunked_array([["?"]]), np.zeros((1, 4)), no_object))
    relation_ids = _numbers(each.relationship_id for each in said)
    kept, rejected = rows.relation_tables(items, relation_ids, [each.predicate for each in said], codes_of, np.stack(joined), ends)
    yield Batch("relations", file, len(said), kept, rejected)
