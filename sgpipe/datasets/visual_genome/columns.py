"""Spans of a JSON file to columns: decoded and flattened, nothing judged but the form of its records.

Runs in worker processes, so nothing here imports more than msgspec and NumPy. Strings are numbers and the list of distinct ones.
"""

import gc
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from sgpipe.datasets.base import MISSING, Invalid
from sgpipe.datasets.visual_genome.lookup import Lookup, lookups
from sgpipe.datasets.visual_genome.records import ImageRecord, ObjectRecord, ObjectsRecord, RelationshipsRecord, decode
from sgpipe.datasets.visual_genome.spans import Span

Kind = Literal["images", "objects", "relationships"]
_RECORDS: Mapping[Kind, Any] = {"images": ImageRecord, "objects": ObjectsRecord, "relationships": RelationshipsRecord}


@dataclass(frozen=True)
class Texts:
    """Strings `[N]`, each the number of one of the distinct `values`."""

    codes: NDArray[np.int32]
    values: list[str]

    @classmethod
    def of(cls, texts: Sequence[str]) -> Self:
        """Numbered in the order of their first appearance."""
        numbers: defaultdict[str, int] = defaultdict(count().__next__)
        return cls(np.fromiter(map(numbers.__getitem__, texts), np.int32, len(texts)), list(numbers))

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """All parts' strings, one after another."""
        every = cls.of([value for part in parts for value in part.values])
        starts = np.cumsum([0, *(len(part.values) for part in parts[:-1])])
        codes = [every.codes[start + part.codes] for start, part in zip(starts, parts, strict=True)]
        return cls(np.concatenate(codes), every.values)


@dataclass(frozen=True)
class Described:
    """Objects as annotated: ids, names, and boxes `[N, 4]`."""

    ids: NDArray[np.int64]
    names: Texts
    boxes: NDArray[np.float64]

    @classmethod
    def of(cls, records: Sequence[ObjectRecord], key: str) -> Self:
        """Of decoded records; the first of `names` counts, else `name`."""
        names = [record.names[0] if record.names else record.name or "" for record in records]
        boxes = np.stack([column(records, name, np.float64) for name in "xywh"], axis=1)
        return cls(column(records, key), Texts.of(names), boxes)

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """All parts' objects, one after another."""
        ids, boxes = (np.concatenate([getattr(part, name) for part in parts]) for name in ("ids", "boxes"))
        return cls(ids, Texts.joined([part.names for part in parts]), boxes)


@dataclass(frozen=True)
class Images:
    """Images: ids, widths and heights in pixels `[3, N]`, and URLs."""

    sizes: NDArray[np.int64]
    urls: list[str | None]

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """All parts' images, one after another."""
        return cls(np.concatenate([part.sizes for part in parts], axis=1), [url for part in parts for url in part.urls])


@dataclass(frozen=True)
class Objects:
    """Objects of a span; `merged` `[M, 2]` are the row of an object and an id that was merged into it."""

    objects: Described
    merged: NDArray[np.int64]

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """All parts' objects, one after another."""
        starts = np.cumsum([0, *(len(part.objects.ids) for part in parts[:-1])])
        merged = [part.merged + np.array([start, 0]) for start, part in zip(starts, parts, strict=True)]
        return cls(Described.joined([part.objects for part in parts]), np.concatenate(merged))


@dataclass(frozen=True)
class Relations:
    """Relationships of a span. `found` `[N, 2]` are the entries of the lookups that subject and object are, or -1; those without an
    entry stand in `own`, in this order, as the relationships describe them.
    """

    ids: NDArray[np.int64]
    predicates: Texts
    found: NDArray[np.int64]
    own: Described

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """All parts' relationships, one after another."""
        ids, found = (np.concatenate([getattr(part, name) for part in parts]) for name in ("ids", "found"))
        return cls(ids, Texts.joined([part.predicates for part in parts]), found, Described.joined([part.own for part in parts]))


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

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """All parts' records, one after another."""
        starts = np.cumsum([0, *(part.count for part in parts[:-1])]).tolist()
        return cls(
            starts[-1] + parts[-1].count,
            np.concatenate([start + part.index for start, part in zip(starts, parts, strict=True)]),
            np.concatenate([part.images for part in parts]),
            np.concatenate([part.counts for part in parts]),
            [replace(each, record=start + each.record) for start, part in zip(starts, parts, strict=True) for each in part.invalid],
            type(parts[0].items).joined([part.items for part in parts]),
        )


def column(records: Sequence[Any], name: str, dtype: Any = np.int64) -> NDArray:
    """One field of every record."""
    return np.fromiter(map(attrgetter(name), records), dtype, len(records))


def read_spans(spans: Sequence[Span], kind: Kind, keys: tuple[str, str, str], folder: Path, seen: Collection[int] = ()) -> Columns:
    """The columns of spans that follow each other.

    `keys` name the ids of images, objects and relationships; `folder` holds the lookups. Ends of relationships are not looked up
    where an earlier record has their image, or `seen` does. Raises `Malformed` where a span is no JSON list. The spans are small,
    so that a span's records stay in the processor's cache.
    """
    gc.disable()  # records hold no cycles, and looking for them takes a tenth of the time
    try:
        return Columns.joined(list(_read(spans, kind, keys, folder, set(seen))))
    finally:
        gc.enable()


def _read(spans: Sequence[Span], kind: Kind, keys: tuple[str, str, str], folder: Path, met: set[int]) -> Iterator[Columns]:
    known = lookups(folder) if kind == "relationships" else []
    for span in spans:
        decoded = decode(span.read(), _RECORDS[kind], keys[0])
        records = decoded.records
        images = column(records, keys[0])
        lists = [] if kind == "images" else [getattr(record, kind) for record in records]
        counts, flat = np.array(list(map(len, lists)), dtype=np.int64), [item for each in lists for item in each]
        items: Any
        if kind == "images":
            sizes = np.stack([images, column(records, "width"), column(records, "height")])
            items = Images(sizes, [record.url for record in records])
        elif kind == "objects":
            merged = [(row, other) for row, item in enumerate(flat) if item.merged_object_ids for other in item.merged_object_ids]
            items = Objects(Described.of(flat, keys[1]), np.array(merged, dtype=np.int64).reshape(-1, 2))
        else:
            usable = [image not in met and not met.add(image) for image in images.tolist()]  # type: ignore[func-returns-value]
            owner = np.where(usable, np.arange(len(images)), -1).repeat(counts)
            ends = [end for item in flat for end in (item.subject, item.object)]
            rows = _found(ends, column(ends, keys[1]), images, owner.repeat(2), known)
            own = Described.of([ends[row] for row in np.flatnonzero(rows < 0).tolist()], keys[1])
            items = Relations(column(flat, keys[2]), Texts.of([item.predicate for item in flat]), rows.reshape(-1, 2), own)
        index = np.array(decoded.index, dtype=np.int64)
        yield Columns(decoded.count, index, images, counts, decoded.invalid, items)


def _found(ends: list[ObjectRecord], ids: NDArray, images: NDArray, owner: NDArray, known: list[Lookup]) -> NDArray[np.int64]:
    """The entry of each end, by its id, else by one merged into it; -1 where no lookup has it, or no `owner`.

    Entries are numbered through all lookups, of which the first that knows an end counts.
    """
    rows, first = np.full(len(ends), -1), 0
    for lookup in known:
        entries = lookup.of(images)
        left = (rows < 0) & (owner >= 0)
        hits = np.where(left & (ids != MISSING), entries.find(owner, ids), -1)
        for row in np.flatnonzero(left & (hits < 0)).tolist():
            if merged := ends[row].merged_object_ids:
                found = entries.find(np.full(len(merged), owner[row]), np.array(merged, dtype=np.int64))
                hits[row] = next((hit for hit in found.tolist() if hit >= 0), -1)
        rows[hits >= 0] = first + hits[hits >= 0]
        first += len(lookup.entries)
    return rows
