"""Records of a data set whose reader is plain Python: one `Record` per image, checked in bounded memory like Visual Genome's."""

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
import pyarrow as pa
from msgspec import Struct
from numpy.typing import NDArray

from sgpipe.datasets import rows
from sgpipe.datasets.base import ID_BITS, Batch, Finite, Id, Invalid, Pixels, Work, convert_whole
from sgpipe.datasets.tables import ATTRIBUTES
from sgpipe.datasets.visual_genome.lookup import find_sorted
from sgpipe.relations.aliases import REMEMBERED, PredicateMap, plain_name

AT_ONCE = 1024
_plain = lru_cache(REMEMBERED)(plain_name)
IMAGE_UNKNOWN = "image unknown"
T = TypeVar("T")


class ObjectRecord(Struct, frozen=True, gc=False):
    """An object; `box` is x, y, w, h in pixels of the annotated size. `reason` is one of `rows.REASONS` to reject it for."""

    object_id: Id
    name: str
    box: tuple[Finite, Finite, Finite, Finite]
    attributes: tuple[str, ...] = ()
    reason: str | None = None


class RelationRecord(Struct, frozen=True, gc=False):
    """`subject` and `object` are ids of objects of the same image; the predicate is free text or a class. `source` is `geometric`
    where the data set derived it from boxes.
    """

    relationship_id: Id
    subject: Id
    predicate: str
    object: Id
    source: str = "annotated"
    reason: str | None = None


class Record(Struct, frozen=True):
    """An annotated image, sizes in pixels. Ids of objects and relations need to differ within an image alone.

    With a `reason` the image and all that hangs on it is rejected; with `IMAGE_UNKNOWN` objects and relations alone, since no
    record of an image was read. Items that could not be read stand among `objects` and `relations` as `Invalid`.
    """

    image_id: Id
    width: Pixels
    height: Pixels
    objects: tuple[ObjectRecord | Invalid, ...] = ()
    relations: tuple[RelationRecord | Invalid, ...] = ()
    url: str | None = None
    reason: str | None = None


def read_item(value: Any, kind: type[T], record: int, image_id: int | None, item_id: int | None = None) -> T | Invalid:
    """`value` as `kind`, or why it is not one: for what a reader finds in a JSON file."""
    try:
        return convert_whole(value, kind)
    except msgspec.ValidationError as error:
        return Invalid(record, image_id, item_id, f"{error}: {str(value)[:300]}")


def batches(
    file: Path, records: Iterable[Record | Invalid], work: Work, seen: set[int] | None = None
) -> Generator[Batch, None, None]:
    """Every record of `file` with its objects and relations, kept or rejected: the body of a data set's `relations`.

    `seen` are ids of images in files before this one; it grows.
    """
    codes_of, seen = rows.PredicateCodes(PredicateMap.load()), set() if seen is None else seen
    pending, first = iter(records), 0
    while chunk := list(islice(pending, AT_ONCE)):
        yield from _chunk(file, chunk, first, seen, codes_of, work)
        first += len(chunk)
    work.progress(file, file.stat().st_size)


def _numbers(values: list[int]) -> NDArray[np.int64]:
    return np.array(values, dtype=np.int64)


def _strings(values: list[str]) -> pa.DictionaryArray:
    return pa.array(values, pa.string()).dictionary_encode()


def _codes(reasons: Sequence[str | None]) -> NDArray[np.int64]:
    if not any(reasons):
        return np.zeros(len(reasons), dtype=np.int64)
    return _numbers([0 if reason is None else rows.CODE[reason] for reason in reasons])


def _parts(items: Sequence[tuple[T | Invalid, ...]], kind: type[T]) -> tuple[list[T], list[int], list[Invalid]]:
    """The sound items of several records, their number in each, and the others."""
    sound = [[each for each in some if isinstance(each, kind)] for some in items]
    invalid = [each for some in items for each in some if isinstance(each, Invalid)]
    return [each for some in sound for each in some], list(map(len, sound)), invalid


def _chunk(
    file: Path, chunk: list[Record | Invalid], first: int, seen: set[int], codes_of: rows.PredicateCodes, work: Work
) -> Iterator[Batch]:
    numbered = [(first + i, record) for i, record in enumerate(chunk) if isinstance(record, Record)]
    listed = [(number, record) for number, record in numbered if record.reason != IMAGE_UNKNOWN]
    records = [record for _, record in listed]
    sizes = np.array([(each.image_id, each.width, each.height) for each in records], np.int64).reshape(-1, 3).T
    faults = _codes([record.reason for record in records])
    invalid = [record for record in chunk if isinstance(record, Invalid)]
    again, kept, rejected = rows.image_tables(
        file.name, [number for number, _ in listed], sizes, [record.url for record in records], seen, invalid, faults
    )
    yield Batch("images", file, len(listed) + len(invalid), kept, rejected)

    index, records = [number for number, _ in numbered], [record for _, record in numbered]
    ids, width, height = np.array([(each.image_id, each.width, each.height) for each in records], np.int64).reshape(-1, 3).T
    codes = _codes([record.reason for record in records])
    codes[[record.reason != IMAGE_UNKNOWN for record in records]] = np.where(again, rows.CODE["image repeated"], faults)
    flat, counts, damaged = _parts([record.objects for record in records], ObjectRecord)
    items = _items(file, index, ids, codes, counts, [each.reason for each in flat])
    raw_names = _strings([each.name for each in flat])
    boxes = np.array([each.box for each in flat], dtype=np.float64).reshape(-1, 4)
    names = pa.array([_plain(each.name) for each in flat], pa.string())
    objects = rows.Objects.of(_numbers([each.object_id for each in flat]), names, boxes, width[items.owner], height[items.owner])
    keep, kept, rejected = rows.object_tables(items, objects, raw_names, boxes, damaged)
    derived = rows.geometric_relations(work.geometric, kept, objects.boxes[keep])
    said = _attributes([flat[i] for i in keep], items.image[keep])
    yield Batch("objects", file, len(flat) + len(damaged), kept, rejected, derived, said)

    keys = (items.owner << ID_BITS) | objects.ids
    order = np.argsort(keys, kind="stable")  # of two with the same id the first counts
    objects = replace(objects, codes=np.where(objects.codes > 0, objects.codes, items.codes))
    told, counts, damaged = _parts([record.relations for record in records], RelationRecord)
    items = _items(file, index, ids, codes, counts, [each.reason for each in told])
    sides = _numbers([each.subject for each in told]), _numbers([each.object for each in told])
    found = [find_sorted(keys[order], (items.owner << ID_BITS) | side) for side in sides]
    joined = np.stack([np.where(at < 0, len(flat), np.append(order, 0)[at]) for at in found])
    no_object = np.array([rows.CODE["object unknown"]])
    ends = objects.followed_by(rows.Objects(np.array([-1]), pa.chunked_array([["?"]]), np.zeros((1, 4)), no_object))
    relation_ids = _numbers([each.relationship_id for each in told])
    raws, sources = _strings([each.predicate for each in told]), _strings([each.source for each in told])
    kept, rejected = rows.relation_tables(items, relation_ids, raws, codes_of, joined, ends, damaged, sources)
    yield Batch("relations", file, len(told) + len(damaged), kept, rejected)


def _items(
    file: Path, index: list[int], ids: NDArray, codes: NDArray, counts: list[int], reasons: Sequence[str | None]
) -> rows.Items:
    """Items of several records, with reasons of their own where nothing is held against the whole record."""
    items = rows.Items.of(file.name, index, ids, codes, counts)
    return replace(items, codes=np.where(items.codes > 0, items.codes, _codes(reasons)))


@lru_cache(REMEMBERED)
def _plain_attributes(attributes: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(attribute for attribute in dict.fromkeys(map(_plain, attributes)) if attribute)


def _attributes(objects: list[ObjectRecord], images: NDArray[np.int64]) -> pa.Table | None:
    """Rows of `attributes.parquet`; None where no object has any."""
    said = [_plain_attributes(each.attributes) for each in objects]
    counts = list(map(len, said))
    if not any(counts):
        return None
    ids = _numbers([each.object_id for each in objects]).repeat(counts)
    return pa.table([ids, images.repeat(counts), [each for several in said for each in several]], schema=ATTRIBUTES)
