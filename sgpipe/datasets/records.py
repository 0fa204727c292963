"""Records of a data set whose reader is plain Python: one `Record` per image, checked in bounded memory like Visual Genome's."""

from collections.abc import Generator, Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
from msgspec import Struct

from sgpipe.datasets.base import Batch, Id, Invalid, Pixels, Work
from sgpipe.datasets.rows import (
    CODE,
    Images,
    Items,
    Objects,
    PredicateCodes,
    geometric_relations,
    image_tables,
    object_tables,
    relation_tables,
)
from sgpipe.relations.aliases import Names, PredicateMap

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
    names, codes_of, seen = Names({}), PredicateCodes(PredicateMap.load()), set[int]()
    pending, first = iter(records), 0
    while chunk := list(islice(pending, AT_ONCE)):
        yield from _chunk(file, chunk, first, seen, names, codes_of, work)
        first += len(chunk)
    work.progress(file, file.stat().st_size)


def _chunk(
    file: Path, chunk: list[Record | Invalid], first: int, seen: set[int], names: Names, codes_of: PredicateCodes, work: Work
) -> Iterator[Batch]:
    index = [first + i for i, record in enumerate(chunk) if isinstance(record, Record)]
    records = [record for record in chunk if isinstance(record, Record)]
    ids, width, height = (
        np.array([getattr(record, name) for record in records], dtype=np.int64) for name in ("image_id", "width", "height")
    )
    invalid = [record for record in chunk if isinstance(record, Invalid)]
    images = Images(np.array(index, dtype=np.int64), ids, width, height, [record.url for record in records])
    again, kept, rejected = image_tables(file.name, images, seen, invalid)
    yield Batch("images", file, len(chunk), kept, rejected)
    codes = np.where(again, CODE["image repeated"], 0)

    flat = [each for record in records for each in record.objects]
    items = Items.of(file.name, index, ids, codes, [len(record.objects) for record in records])
    raw_names = [each.name for each in flat]
    boxes = np.array([each.box for each in flat], dtype=np.float64).reshape(-1, 4)
    objects = Objects.of(
        np.array([each.object_id for each in flat], dtype=np.int64),
        pa.array([names[name] for name in raw_names], pa.string()),
        boxes,
        width[items.owner],
        height[items.owner],
    )
    rows, kept, rejected = object_tables(items, objects, raw_names, boxes)
    derived = geometric_relations(work.geometric, kept, objects.boxes[rows]) if work.geometric.per_image else None
    yield Batch("objects", file, len(flat), kept, rejected, derived)

    place: dict[tuple[int, int], int] = {}
    for row, key in enumerate(zip(items.owner.tolist(), objects.ids.tolist(), strict=True)):
        place.setdefault(key, row)
    said = [each for record in records for each in record.relations]
    items = Items.of(file.name, index, ids, codes, [len(record.relations) for record in records])
    subject, object_ = (
        np.array(
            [place.get((owner, getattr(each, side)), len(flat)) for owner, each in zip(items.owner.tolist(), said, strict=True)],
            dtype=np.int64,
        )
        for side in ("subject", "object")
    )
    ends = Objects(
        np.append(objects.ids, -1),
        pa.concat_arrays([objects.names, pa.array(["?"])]),
        np.vstack([objects.boxes, np.zeros(4)]),
        np.append(objects.codes, CODE["object unknown"]),
    )
    relation_ids = np.array([each.relationship_id for each in said], dtype=np.int64)
    raw = [each.predicate for each in said]
    kept, rejected = relation_tables(items, relation_ids, raw, codes_of, subject, object_, ends)
    yield Batch("relations", file, len(said), kept, rejected)
