"""The checks of every data set: arrays of objects and relations to rows of the tables and of the rejects."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sgpipe.datasets.base import MISSING, Invalid
from sgpipe.datasets.config import Geometric
from sgpipe.datasets.tables import IMAGES, OBJECTS, REJECTS, RELATIONS
from sgpipe.relations.aliases import PredicateMap
from sgpipe.relations.boxes import clip, geometric_relation
from sgpipe.relations.names import faulty_names
from sgpipe.relations.predicates import PREDICATE_INDEX, PREDICATES
from sgpipe.runs.hashing import hashed

REASONS = (
    "kept",
    "invalid",
    "image unknown",
    "image repeated",
    "id missing",
    "name empty",
    "name invalid",
    "box empty",
    "box outside image",
    "self-loop",
    "id repeated",
    "relation repeated",
    "object unknown",
)
"""Why a record is dropped, apart from its predicate; the first that holds is given. Index 0 is no reason."""
CODE = {reason: code for code, reason in enumerate(REASONS)}
BOX = ("x", "y", "w", "h")
_CLASS_NAMES = pa.array(PREDICATES)
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


def reject_table(file: str, columns: dict[str, Any], invalid: Sequence[Invalid]) -> pa.Table:
    """Rows of `rejects.parquet`; `columns` without `file`, then the records that could not be read at all."""
    rows = len(columns["reason"])
    sound = pa.table({"file": pa.repeat(file, rows), **columns}, schema=REJECTS)
    if not invalid:
        return sound
    damaged = pa.table(
        {
            "file": pa.repeat(file, len(invalid)),
            "record": [item.record for item in invalid],
            "image_id": [item.image_id for item in invalid],
            "relationship_id": [item.item_id for item in invalid],
            "reason": pa.repeat("invalid", len(invalid)),
            "raw": [item.raw for item in invalid],
        },
        schema=REJECTS,
    )
    return pa.concat_tables([sound, damaged])


@dataclass(frozen=True)
class Images:
    """Images of several records `[N]`: index of the record in its file, image id, width and height in pixels, address."""

    index: NDArray[np.int64]
    ids: NDArray[np.int64]
    widths: NDArray[np.int64]
    heights: NDArray[np.int64]
    urls: list[str | None]


def image_tables(
    file: str, images: Images, seen: set[int], invalid: Sequence[Invalid]
) -> tuple[NDArray[np.bool_], pa.Table, pa.Table]:
    """Which images were met before, rows of `images.parquet` but for the split, and rejects. The others are added to `seen`."""
    known = (image_id in seen for image_id in images.ids.tolist())
    again = repeated(images.ids) | np.fromiter(known, np.bool_, len(images.ids))
    keep, drop = np.flatnonzero(~again), np.flatnonzero(again)
    seen.update(images.ids[keep].tolist())
    columns = {
        "image_id": images.ids[keep],
        "width": images.widths[keep].astype(np.int32),
        "height": images.heights[keep].astype(np.int32),
        "url": [images.urls[i] for i in keep],
    }
    rejects = {
        "record": images.index[drop],
        "image_id": images.ids[drop],
        "relationship_id": pa.nulls(len(drop), pa.int64()),
        "reason": ["image repeated"] * len(drop),
        "raw": [f"{images.widths[i]} x {images.heights[i]}" for i in drop],
    }
    return again, pa.table(columns, schema=_UNSPLIT), reject_table(file, rejects, invalid)


class PredicateCodes(dict[str, int]):
    """Raw predicate -> code: twice the class index, plus one if inverted; a rejection is `-1 - index` into `reasons`."""

    def __init__(self, predicates: PredicateMap, limit: int = 1 << 16) -> None:
        super().__init__()
        self._map = predicates
        self._limit = limit
        self.reasons: list[str] = []

    def __missing__(self, raw: str) -> int:
        if len(self) >= self._limit:
            self.clear()
        found = self._map.meaning(raw)
        if found.predicate is not None:
            code = 2 * PREDICATE_INDEX[found.predicate] + found.inverse
        else:
            assert found.reason is not None
            if found.reason not in self.reasons:
                self.reasons.append(found.reason)
            code = -1 - self.reasons.index(found.reason)
        self[raw] = code
        return code


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
    def of(cls, file: str, index: list[int], images: NDArray, codes: NDArray, counts: list[int]) -> Self:
        """From the index in the file, image id, code and number of items of each record."""
        owner = np.repeat(np.arange(len(counts)), np.array(counts, dtype=np.int64))
        return cls(file, owner, np.array(index, dtype=np.int64)[owner], images[owner], codes[owner])


@dataclass(frozen=True)
class Objects:
    """Objects, or ends of relations: ids, canonical names, boxes within their images `[N, 4]`, codes of reasons against them."""

    ids: NDArray[np.int64]
    names: pa.Array | pa.ChunkedArray
    boxes: NDArray[np.float64]
    codes: NDArray[np.int64]

    @classmethod
    def of(cls, ids: NDArray, names: pa.Array, boxes: NDArray, width: NDArray, height: NDArray) -> Self:
        """From boxes as annotated and the sizes of their images."""
        clipped = clip(boxes, width, height)
        reasons = {
            "id missing": ids == MISSING,
            "name empty": pc.binary_length(names).to_numpy() == 0,
            "name invalid": faulty_names(names),
            "box empty": (boxes[:, 2] <= 0) | (boxes[:, 3] <= 0),
            "box outside image": (clipped[:, 2] <= 0) | (clipped[:, 3] <= 0),
        }
        codes = np.select(list(reasons.values()), [CODE[reason] for reason in reasons], 0)
        return cls(ids, names, clipped, codes)


def object_tables(
    items: Items, objects: Objects, raw_names: list[str], given: NDArray, invalid: Sequence[Invalid] = ()
) -> tuple[NDArray[np.int64], pa.Table, pa.Table]:
    """Indices of what is kept, rows of `objects.parquet`, and rejects. `given` are the boxes as annotated."""
    ids = objects.ids
    codes = np.where(items.codes > 0, items.codes, objects.codes)
    sound = np.flatnonzero(codes == 0)
    codes[sound[repeated(items.image[sound], ids[sound])]] = CODE["id repeated"]
    keep, drop = np.flatnonzero(codes == 0), np.flatnonzero(codes)
    rows = pa.array(keep)
    columns: dict[str, Any] = {
        "object_id": ids[keep],
        "image_id": items.image[keep],
        "name": objects.names.take(rows),
        "raw_name": pa.array(raw_names, pa.string()).take(rows),
    }
    columns |= {name: objects.boxes[keep, i].astype(np.float32) for i, name in enumerate(BOX)}
    rejects = {
        "record": items.record[drop],
        "image_id": items.image[drop],
        "relationship_id": pa.nulls(len(drop), pa.int64()),
        "reason": [REASONS[code] for code in codes[drop]],
        "raw": [f"{ids[i]}: {raw_names[i]!r} {given[i].tolist()}" for i in drop],
    }
    return keep, pa.table(columns, schema=OBJECTS), reject_table(items.file, rejects, invalid)


def _relation_columns(s: NDArray, o: NDArray, ids: NDArray, boxes: NDArray) -> dict[str, Any]:
    """Ids and boxes of subjects and objects, given by their rows."""
    columns: dict[str, Any] = {"subject_id": ids[s], "object_id": ids[o]}
    for prefix, side in (("s", s), ("o", o)):
        columns |= {f"{prefix}{name}": boxes[side, i].astype(np.float32) for i, name in enumerate(BOX)}
    return columns


def relation_tables(
    items: Items,
    ids: NDArray[np.int64],
    raw: list[str],
    codes_of: PredicateCodes,
    subject: NDArray[np.int64],
    object_: NDArray[np.int64],
    ends: Objects,
    invalid: Sequence[Invalid] = (),
) -> tuple[pa.Table, pa.Table]:
    """Rows of `relations.parquet` and rejects, from ids, raw predicates, and the rows of `ends` that each relation joins."""
    predicate = np.fromiter(map(codes_of.__getitem__, raw), np.int64, len(raw))
    reasons = [*REASONS, *codes_of.reasons]
    codes = np.select(
        [
            items.codes > 0,
            ids == MISSING,
            predicate < 0,
            ends.codes[subject] > 0,
            ends.codes[object_] > 0,
            ends.ids[subject] == ends.ids[object_],
        ],
        [
            items.codes,
            CODE["id missing"],
            len(REASONS) - 1 - predicate,
            ends.codes[subject],
            ends.codes[object_],
            CODE["self-loop"],
        ],
        0,
    )
    sound = np.flatnonzero(codes == 0)
    codes[sound[repeated(items.image[sound], ids[sound])]] = CODE["id repeated"]
    inverted = (predicate >= 0) & (predicate % 2 == 1)
    subject, object_ = np.where(inverted, object_, subject), np.where(inverted, subject, object_)
    sound = np.flatnonzero(codes == 0)
    said = items.image[sound], ends.ids[subject[sound]], predicate[sound] // 2, ends.ids[object_[sound]]
    codes[sound[repeated(*said)]] = CODE["relation repeated"]

    keep, drop = np.flatnonzero(codes == 0), np.flatnonzero(codes)
    raws = pa.array(raw, pa.string())
    columns: dict[str, Any] = {
        "relationship_id": ids[keep],
        "image_id": items.image[keep],
        "subject": ends.names.take(pa.array(subject[keep])),
        "predicate": _CLASS_NAMES.take(pa.array(predicate[keep] // 2)),
        "object": ends.names.take(pa.array(object_[keep])),
        "raw_predicate": raws.take(pa.array(keep)),
        "source": pa.repeat("annotated", len(keep)),
        **_relation_columns(subject[keep], object_[keep], ends.ids, ends.boxes),
    }
    # the record reads subject - predicate - object as annotated, so the exchange of an inverse is undone for the eye
    first, last = np.where(inverted, object_, subject), np.where(inverted, subject, object_)
    rejects = {
        "record": items.record[drop],
        "image_id": items.image[drop],
        "relationship_id": pa.array(ids[drop], mask=ids[drop] == MISSING),
        "reason": pa.array(reasons).take(pa.array(codes[drop])),
        "raw": pc.binary_join_element_wise(
            ends.names.take(pa.array(first[drop])), raws.take(pa.array(drop)), ends.names.take(pa.array(last[drop])), " | "
        ),
    }
    return pa.table(columns, schema=RELATIONS), reject_table(items.file, rejects, invalid)


def geometric_relations(params: Geometric, objects: pa.Table, boxes: NDArray) -> pa.Table:
    """At most `params.per_image` relations per image: every object is paired with one other, by hash, and hashes choose.

    `objects` are rows of `objects.parquet`, all of an image together, and `boxes` `[N, 4]` theirs.
    """
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
    good = (size > 1) & (names[s] != names[o]) & np.isin(classes, params.classes) & (boxes[s] != boxes[o]).any(axis=1)
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
