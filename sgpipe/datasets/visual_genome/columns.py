"""Spans of a JSON file to columns: decoded and flattened, nothing judged but the form of its records.

Runs in worker processes, so nothing here imports more than msgspec and NumPy. Strings are numbers and the list of distinct ones.
A list comprehension that names a field takes a quarter of the time of `attrgetter`, and packing a third of NumPy's own conversion.
"""

import gc
import struct
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import count
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sgpipe.datasets.base import MISSING, Invalid
from sgpipe.datasets.visual_genome.lookup import ENTRY, Lookup, lookups
from sgpipe.datasets.visual_genome.records import ImageRecord, ObjectRecord, ObjectsRecord, RelationshipsRecord, decode
from sgpipe.datasets.visual_genome.spans import Span

Kind = Literal["images", "objects", "relationships"]
_RECORDS: dict[Kind, Any] = {"images": ImageRecord, "objects": ObjectsRecord, "relationships": RelationshipsRecord}


@dataclass(frozen=True)
class Texts:
    """Strings `[N]`, each the number of one of the distinct `values`, which stand in the order of their first appearance."""

    codes: NDArray[np.int32]
    values: list[str]


@dataclass(frozen=True)
class Described:
    """Objects as annotated: ids, names, and boxes `[N, 4]`."""

    ids: NDArray[np.int64]
    names: Texts
    boxes: NDArray[np.float64]


@dataclass(frozen=True)
class Images:
    """Images: ids, widths and heights in pixels `[3, N]`, and URLs."""

    sizes: NDArray[np.int64]
    urls: list[str | None]


@dataclass(frozen=True)
class Objects:
    """Objects; `merged` `[M, 2]` are the row of an object and an id that was merged into it."""

    objects: Described
    merged: NDArray[np.int64]


@dataclass(frozen=True)
class Relations:
    """Relationships. `source` `[N, 2]` are the numbers of the lookups that have their subjects and objects, or -1. `found` are the
    entries there, `own` the other ends as the relationships describe them, both in the order of `source`.
    """

    ids: NDArray[np.int64]
    predicates: Texts
    source: NDArray[np.int8]
    found: NDArray
    own: Described


@dataclass(frozen=True)
class Columns:
    """The records of spans: their number, and of the sound ones the index, image and number of items; then the items themselves,
    `Images`, `Objects` or `Relations`.
    """

    count: int
    index: NDArray[np.int64]
    images: NDArray[np.int64]
    counts: NDArray[np.int64]
    invalid: list[Invalid]
    items: Any


def packed(values: Sequence[Any], dtype: Any = np.int64) -> NDArray:
    """Python numbers as an array."""
    dtype = np.dtype(dtype)
    return np.frombuffer(struct.pack(f"{len(values)}{dtype.char}", *values), dtype)


def column(records: Sequence[Any], name: str, dtype: Any = np.int64) -> NDArray:
    """One field of every record."""
    return packed(list(map(attrgetter(name), records)), dtype)


def _numbered(texts: list[str], numbers: dict[str, int]) -> NDArray[np.int32]:
    return packed(list(map(numbers.__getitem__, texts)), np.int32)


def read_spans(spans: Sequence[Span], kind: Kind, keys: tuple[str, str, str], folder: Path, seen: Collection[int] = ()) -> Columns:
    """The columns of spans that follow each other.

    `keys` name the ids of images, objects and relationships; `folder` holds the lookups. Ends of relationships are not looked up
    where an earlier record has their image, or `seen` does. Raises `Malformed` where a span is no JSON list. The spans are small,
    so that a span's records stay in the processor's cache.
    """
    reader = _Reader(keys, lookups(folder) if kind == "relationships" else [], set(seen))
    read, invalid, parts = 0, list[Invalid](), []
    gc.disable()  # records hold no cycles, and looking for them takes a tenth of the time
    try:
        for span in spans:
            decoded = decode(span.read(), _RECORDS[kind], keys[0])
            images = column(decoded.records, keys[0])
            parts.append([packed(decoded.index) + read, images, *getattr(reader, kind)(decoded.records, images)])
            invalid += [replace(each, record=read + each.record) for each in decoded.invalid]
            read += decoded.count
        index, images, counts, *fields = (np.concatenate(each) for each in zip(*parts, strict=True))
    finally:
        gc.enable()
    items: Images | Objects | Relations
    if kind == "images":
        items = Images(np.stack([images, *fields[:2]]), fields[2].tolist())
    elif kind == "objects":
        items = Objects(reader.described(fields), fields[3])
    else:
        items = Relations(fields[3], Texts(fields[4], list(reader.predicates)), fields[5], fields[6], reader.described(fields))
    return Columns(read, index, images, counts, invalid, items)


class _Reader:
    """Records of one span after another to lists of arrays, which are to be joined: numbers of items, then the items' fields."""

    def __init__(self, keys: tuple[str, str, str], known: list[Lookup], met: set[int]) -> None:
        self._keys, self._known, self._met = keys, known, met
        self._names, self.predicates = (defaultdict[str, int](count().__next__) for _ in range(2))
        self._row = 0

    def described(self, fields: list[NDArray]) -> Described:
        """Objects from joined fields."""
        return Described(fields[0], Texts(fields[1], list(self._names)), fields[2])

    def images(self, records: list[ImageRecord], images: NDArray) -> list[NDArray]:
        urls = np.array([record.url for record in records], dtype=object)
        return [np.zeros(0, dtype=np.int64), column(records, "width"), column(records, "height"), urls]

    def objects(self, records: list[ObjectsRecord], images: NDArray) -> list[NDArray]:
        flat = [item for record in records for item in record.objects]
        merged = [(row, ids) for row, item in enumerate(flat, self._row) if (ids := item.merged_object_ids)]
        self._row += len(flat)
        pairs = np.array([(row, other) for row, ids in merged for other in ids], dtype=np.int64).reshape(-1, 2)
        return [packed([len(record.objects) for record in records]), *self._fields(flat, self._ids(flat)), pairs]

    def relationships(self, records: list[RelationshipsRecord], images: NDArray) -> list[NDArray]:
        flat = [item for record in records for item in record.relationships]
        counts = packed([len(record.relationships) for record in records])
        usable = [image not in self._met and not self._met.add(image) for image in images.tolist()]  # type: ignore[func-returns-value]
        ends = [end for item in flat for end in (item.subject, item.object)]
        ids = self._ids(ends)
        source, found = _found(ends, ids, images, np.where(usable, np.arange(len(images)), -1).repeat(2 * counts), self._known)
        own = np.flatnonzero(source < 0)
        described = self._fields([ends[row] for row in own.tolist()], ids[own])
        key = self._keys[2]
        numbers = packed([item.relationship_id for item in flat]) if key == "relationship_id" else column(flat, key)
        predicates = _numbered([item.predicate for item in flat], self.predicates)
        return [counts, *described, numbers, predicates, source.reshape(-1, 2), found]

    def _ids(self, records: list[ObjectRecord]) -> NDArray[np.int64]:
        key = self._keys[1]
        return packed([record.object_id for record in records]) if key == "object_id" else column(records, key)

    def _fields(self, records: list[ObjectRecord], ids: NDArray[np.int64]) -> list[NDArray]:
        """Ids, numbers of names (the first of `names`, else `name`) and boxes."""
        texts = [names[0] if (names := record.names) else record.name or "" for record in records]
        sides = [record.x for record in records] + [record.y for record in records] + [record.w for record in records]
        boxes = packed(sides + [record.h for record in records], np.float64).reshape(4, -1).T
        return [ids, _numbered(texts, self._names), boxes]


def _found(
    ends: list[ObjectRecord], ids: NDArray, images: NDArray, owner: NDArray, known: list[Lookup]
) -> tuple[NDArray[np.int8], NDArray]:
    """The number of the first lookup that has each end, by its id, else by one merged into it, and the entry there; -1 where none
    has it, or it has no `owner`.
    """
    source, rows = np.full(len(ends), -1, dtype=np.int8), np.full(len(ends), -1)
    parts, first = [np.zeros(0, dtype=ENTRY)], 0
    for number, lookup in enumerate(known):
        entries = lookup.of(images)
        left = (source < 0) & (owner >= 0)
        hits = np.where(left & (ids != MISSING), entries.find(owner, ids), -1)
        for row in np.flatnonzero(left & (hits < 0)).tolist():
            if merged := ends[row].merged_object_ids:
                others = entries.find(np.full(len(merged), owner[row]), np.array(merged, dtype=np.int64))
                hits[row] = next((hit for hit in others.tolist() if hit >= 0), -1)
        there = hits >= 0
        source[there], rows[there] = number, first + hits[there]
        parts.append(entries.entries)
        first += len(entries.entries)
    return source, np.concatenate(parts).take(rows[source >= 0])
