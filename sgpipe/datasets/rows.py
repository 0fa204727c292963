"""The checks of every data set: arrays of objects and relations to rows of the tables and of the rejects."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Self, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike, NDArray

from sgpipe.datasets.base import MISSING, Invalid
from sgpipe.datasets.config import Geometric
from sgpipe.datasets.tables import BOX, IMAGES, OBJECTS, REJECTS, RELATIONS
from sgpipe.relations.aliases import REMEMBERED, PredicateMap
from sgpipe.relations.boxes import clip, geometric_relation
from sgpipe.relations.names import name_fault
from sgpipe.relations.predicates import PREDICATE_INDEX, PREDICATES
from sgpipe.runs.hashing import hashed

REASONS = (
    "kept", "invalid", "image unknown", "image repeated", "id missing", "name empty", "name invalid", "box empty",
    "box outside image", "self-loop", "id repeated", "relation repeated", "object unknown", "class left out", "object too small",
    "too few objects", "too many objects", "share of left and right",
)  # fmt: skip
"""Why a record is dropped, apart from its predicate; the first that holds is given. Index 0 is no reason."""
CODE = {reason: code for code, reason in enumerate(REASONS)}
Strings: TypeAlias = pa.Array | pa.ChunkedArray
"""A column of strings; in an array with a dictionary each distinct one is checked or looked up once."""
_UNSPLIT = IMAGES.remove(IMAGES.get_field_index("split"))
"""Columns of `images.parquet` that a data set gives; splits are assigned to all alike."""


def repeated(*columns: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Marks every row whose values were met in an earlier row."""
    order = np.lexsort(columns[::-1])
    same = np.ones(max(len(order) - 1, 0), dtype=bool)
    for column in columns:
        same &= column[order][1:] == column[order][:-1]
    result = np.zeros(len(order), dtype=bool)
    result[order[1:][same]] = True
    return result


@lru_cache(REMEMBERED)
def _name_code(name: str) -> int:
    return CODE["name empty"] if not name else CODE["name invalid"] if name_fault(name) else 0


def _encoded(texts: Strings | list[str]) -> tuple[NDArray[np.int32], list[str]]:
    """The number of each string among the distinct ones, and these."""
    if isinstance(texts, list):
        texts = pa.array(texts, pa.string())
    if not isinstance(texts, pa.DictionaryArray):
        texts = texts.dictionary_encode()
    return texts.indices.to_numpy(), texts.dictionary.to_pylist()


def _taken(texts: Strings | list[str], rows: NDArray[np.int64]) -> Strings:
    """The strings of some rows, without a dictionary."""
    if isinstance(texts, list):
        texts = pa.array(texts, pa.string())
    found = texts.take(pa.array(rows))
    return found.dictionary_decode() if isinstance(found, pa.DictionaryArray) else found


def _sides(boxes: NDArray) -> NDArray[np.float32]:
    """Boxes `[N, 4]` as columns `[4, N]` of a table."""
    return np.ascontiguousarray(boxes.T, dtype=np.float32)


def _without_area(boxes: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether boxes `[N, 4]` have no width or no height in the tables' float32, where a tiny side is 0."""
    with np.errstate(over="ignore"):
        sides = boxes[:, 2:].astype(np.float32)
    return (sides[:, 0] <= 0) | (sides[:, 1] <= 0)


def _rejects(file: str, invalid: Sequence[Invalid], **columns: Any) -> pa.Table:
    """Rows of `rejects.parquet`: `columns` of the records that were read, then those that could not be read at all."""
    count = len(columns["reason"])
    columns = {"file": pa.repeat(file, count), "relationship_id": pa.nulls(count, pa.int64()), **columns}
    table = pa.table(columns, schema=REJECTS)
    if not invalid:
        return table
    damaged = [
        dict(zip(REJECTS.names, (file, each.record, each.image_id, each.item_id, "invalid", each.raw), strict=True))
        for each in invalid
    ]
    return pa.concat_tables([table, pa.Table.from_pylist(damaged, schema=REJECTS)])


def image_tables(
    file: str,
    index: list[int],
    images: NDArray[np.int64],
    urls: list[str | None],
    seen: set[int],
    invalid: Sequence[Invalid],
    faults: NDArray | None = None,
) -> tuple[NDArray[np.bool_], pa.Table, pa.Table]:
    """Which images were met before, rows of `images.parquet` but for the split, and rejects. The others are added to `seen`.

    `images` `[3, N]` are ids, widths and heights in pixels of the records with these indices in the file; `faults` codes of reasons
    against images that are met for the first time.
    """
    again = repeated(images[0]) | np.fromiter((image_id in seen for image_id in images[0].tolist()), np.bool_, len(urls))
    codes = np.where(again, CODE["image repeated"], np.zeros(len(urls), np.int64) if faults is None else faults)
    keep, drop = np.flatnonzero(codes == 0), np.flatnonzero(codes)
    seen.update(images[0].tolist())
    ids, widths, heights = images[:, keep]
    columns = {
        "image_id": ids,
        "width": widths.astype(np.int32),
        "height": heights.astype(np.int32),
        "url": [urls[i] for i in keep],
    }
    rejects = _rejects(
        file, invalid,
        record=[index[i] for i in drop], image_id=images[0, drop], reason=[REASONS[code] for code in codes[drop]],
        raw=[f"{width} x {height}" for _, width, height in images[:, drop].T],
    )  # fmt: skip
    return again, pa.table(columns, schema=_UNSPLIT), rejects


class PredicateCodes:
    """Codes of raw predicates: twice the class index, plus one if inverted; a rejection is `-1 - index` into `reasons`."""

    def __init__(self, predicates: PredicateMap) -> None:
        self._predicates = predicates
        self.reasons: list[str] = []
        self.of = lru_cache(REMEMBERED)(self._code)

    def _code(self, raw: str) -> int:
        found = self._predicates.meaning(raw)
        if found.predicate is not None:
            return 2 * PREDICATE_INDEX[found.predicate] + found.inverse
        assert found.reason is not None
        if found.reason not in self.reasons:
            self.reasons.append(found.reason)
        return -1 - self.reasons.index(found.reason)


@dataclass(frozen=True)
class Items:
    """The objects or relations of several records, flattened `[N]`: place and index of the record that each is of, its image, and
    the code of a reason against the whole record.
    """

    file: str
    owner: NDArray[np.int64]
    record: NDArray[np.int64]
    image: NDArray[np.int64]
    codes: NDArray[np.int64]

    @classmethod
    def of(cls, file: str, index: ArrayLike, images: NDArray, codes: NDArray, counts: ArrayLike) -> Self:
        """From the index in the file, image id, code and number of items of each record."""
        counts = np.asarray(counts, dtype=np.int64)
        owner = np.arange(len(counts)).repeat(counts)
        return cls(file, owner, np.asarray(index, dtype=np.int64)[owner], images[owner], codes[owner])


@dataclass(frozen=True)
class Objects:
    """Objects, or ends of relations: ids, canonical names, boxes within their images `[N, 4]`, codes of reasons against them."""

    ids: NDArray[np.int64]
    names: Strings
    boxes: NDArray[np.float64]
    codes: NDArray[np.int64]

    def followed_by(self, other: Self) -> Self:
        """These objects, then the others."""
        ids, boxes, codes = (np.concatenate([getattr(each, name) for each in (self, other)]) for name in ("ids", "boxes", "codes"))
        chunks = [*self.names.chunks, *other.names.chunks]
        return type(self)(ids, pa.chunked_array(chunks, pa.string()), boxes, codes)

    @classmethod
    def of(cls, ids: NDArray, names: pa.Array, boxes: NDArray, width: NDArray, height: NDArray) -> Self:
        """From boxes as annotated and the sizes of their images."""
        clipped = clip(boxes, width, height)
        index, values = _encoded(names)
        name_codes = np.array(list(map(_name_code, values)), dtype=np.int64)[index]
        faults: list[tuple[NDArray, Any]] = [
            (ids == MISSING, CODE["id missing"]),
            (name_codes > 0, name_codes),
            (_without_area(boxes), CODE["box empty"]),
            (_without_area(clipped), CODE["box outside image"]),
        ]
        codes: NDArray = np.select([fault for fault, _ in faults], [code for _, code in faults], 0)
        return cls(ids, names if isinstance(names, pa.DictionaryArray) else pa.chunked_array([names]), clipped, codes)


def object_tables(
    items: Items, objects: Objects, raw_names: Strings | list[str], given: NDArray, invalid: Sequence[Invalid] = ()
) -> tuple[NDArray[np.int64], pa.Table, pa.Table]:
    """Indices of what is kept, rows of `objects.parquet`, and rejects. `given` are the boxes as annotated."""
    ids = objects.ids
    codes = np.where(items.codes > 0, items.codes, objects.codes)
    sound = np.flatnonzero(codes == 0)
    codes[sound[repeated(items.image[sound], ids[sound])]] = CODE["id repeated"]
    keep, drop = np.flatnonzero(codes == 0), np.flatnonzero(codes)
    columns: dict[str, Any] = {
        "object_id": ids[keep],
        "image_id": items.image[keep],
        "name": _taken(objects.names, keep),
        "raw_name": _taken(raw_names, keep),
    }
    columns |= dict(zip(BOX, _sides(objects.boxes[keep]), strict=True))
    told = _taken(raw_names, drop).to_pylist()
    rejects = _rejects(
        items.file, invalid,
        record=items.record[drop], image_id=items.image[drop], reason=[REASONS[code] for code in codes[drop]],
        raw=[f"{each}: {raw!r} {box}" for each, raw, box in zip(ids[drop].tolist(), told, given[drop].tolist(), strict=True)],
    )  # fmt: skip
    return keep, pa.table(columns, schema=OBJECTS), rejects


def _relation_columns(s: NDArray, o: NDArray, ids: NDArray, boxes: NDArray) -> dict[str, Any]:
    """Ids and boxes of subjects and objects, given by their rows."""
    columns: dict[str, Any] = {"subject_id": ids[s], "object_id": ids[o]}
    for prefix, side in (("s", s), ("o", o)):
        columns |= dict(zip((f"{prefix}{name}" for name in BOX), _sides(boxes[side]), strict=True))
    return columns


def relation_tables(
    items: Items,
    ids: NDArray[np.int64],
    raw: Strings | list[str],
    codes_of: PredicateCodes,
    joined: NDArray[np.int64],
    ends: Objects,
    invalid: Sequence[Invalid] = (),
    sources: Strings | None = None,
) -> tuple[pa.Table, pa.Table]:
    """Rows of `relations.parquet` and rejects. `joined` `[2, N]` are the rows of `ends` that are subjects and objects; `sources`
    say where each relation comes from, all `annotated` where they are left out.
    """
    first, last = subject, object_ = joined
    index, values = _encoded(raw)
    predicate = np.array(list(map(codes_of.of, values)), dtype=np.int64)[index]
    faults: list[tuple[NDArray, Any]] = [
        (items.codes > 0, items.codes),
        (ids == MISSING, CODE["id missing"]),
        (predicate < 0, len(REASONS) - 1 - predicate),
        (ends.codes[subject] > 0, ends.codes[subject]),
        (ends.codes[object_] > 0, ends.codes[object_]),
        (ends.ids[subject] == ends.ids[object_], CODE["self-loop"]),
    ]
    codes: NDArray = np.select([fault for fault, _ in faults], [code for _, code in faults], 0)
    sound = np.flatnonzero(codes == 0)
    codes[sound[repeated(items.image[sound], ids[sound])]] = CODE["id repeated"]
    inverted = (predicate >= 0) & (predicate % 2 == 1)
    subject, object_ = np.where(inverted, object_, subject), np.where(inverted, subject, object_)
    sound = np.flatnonzero(codes == 0)
    said = items.image[sound], ends.ids[subject[sound]], predicate[sound] // 2, ends.ids[object_[sound]]
    codes[sound[repeated(*said)]] = CODE["relation repeated"]

    keep, drop = np.flatnonzero(codes == 0), np.flatnonzero(codes)
    columns: dict[str, Any] = {
        "relationship_id": ids[keep],
        "image_id": items.image[keep],
        "subject": _taken(ends.names, subject[keep]),
        "predicate": pa.array(list(PREDICATES), pa.string()).take(pa.array(predicate[keep] // 2)),
        "object": _taken(ends.names, object_[keep]),
        "raw_predicate": _taken(raw, keep),
        "source": pa.repeat("annotated", len(keep)) if sources is None else _taken(sources, keep),
        **_relation_columns(subject[keep], object_[keep], ends.ids, ends.boxes),
    }
    told = _taken(ends.names, first[drop]), _taken(raw, drop), _taken(ends.names, last[drop])
    rejects = _rejects(
        items.file, invalid,
        record=items.record[drop], image_id=items.image[drop],
        relationship_id=pa.array(ids[drop], mask=ids[drop] == MISSING),
        reason=pa.array([*REASONS, *codes_of.reasons]).take(pa.array(codes[drop])),
        raw=pc.binary_join_element_wise(*told, " | "),
    )  # fmt: skip
    return pa.table(columns, schema=RELATIONS), rejects


def geometric_relations(params: Geometric, objects: pa.Table, boxes: NDArray) -> pa.Table | None:
    """At most `params.per_image` relations per image: every object is paired with one other, by hash, and hashes choose.

    None where none are asked for. `objects` are rows of `objects.parquet`, all of an image together, and `boxes` `[N, 4]` theirs.
    """
    if not params.per_image:
        return None
    ids, images = objects["object_id"].to_numpy(), objects["image_id"].to_numpy()
    order = np.lexsort([ids, images])
    _, start, counts = np.unique(images[order], return_index=True, return_counts=True)
    first, size = np.repeat(start, counts), np.repeat(counts, counts)
    rank = hashed(params.seed, "geometric", images[order], ids[order])
    step = 1 + rank % np.maximum(size - 1, 1).astype(np.uint64)
    partner = first + (np.arange(len(order)) - first + step.astype(np.int64)) % np.maximum(size, 1)
    s, o = order, order[partner] if len(order) else order
    classes, exchange = geometric_relation(boxes[s], boxes[o])
    s, o = np.where(exchange, o, s), np.where(exchange, s, o)
    names = np.array(objects["name"].to_pylist(), dtype=object)
    good = (
        (size > 1)
        & (names[s] != names[o])
        & np.isin(classes, [name for name in params.classes if name in PREDICATE_INDEX])
        & (boxes[s] != boxes[o]).any(axis=1)
    )
    rows = np.flatnonzero(good)
    rows = rows[np.lexsort([rank[rows], first[rows]])]
    _, begin, many = np.unique(first[rows], return_index=True, return_counts=True)
    place = np.arange(len(rows)) - np.repeat(begin, many)
    rows, place = rows[place < params.per_image], place[place < params.per_image]
    columns: dict[str, Any] = {
        "relationship_id": -1 - place,
        "image_id": images[s[rows]],
        "subject": names[s[rows]],
        "predicate": classes[rows].astype(object),
        "object": names[o[rows]],
        "raw_predicate": pa.nulls(len(rows), pa.string()),
        "source": pa.repeat("geometric", len(rows)),
        **_relation_columns(s[rows], o[rows], ids, boxes),
    }
    return pa.table(columns, schema=RELATIONS)
