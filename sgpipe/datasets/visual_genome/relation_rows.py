"""One span of relationships.json to rows of `relations.parquet`."""

from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sgpipe.datasets.tables import RELATIONS
from sgpipe.datasets.visual_genome.context import (
    CODE,
    REASONS,
    Context,
    Rows,
    record_codes,
    reject_table,
    repeated,
)
from sgpipe.datasets.visual_genome.lookup import Lookup, combined_keys
from sgpipe.datasets.visual_genome.object_rows import given_boxes, given_names
from sgpipe.datasets.visual_genome.records import MISSING, ObjectRecord, RelationshipsRecord, decode
from sgpipe.datasets.visual_genome.spans import Span
from sgpipe.relations.aliases import PredicateMap
from sgpipe.relations.boxes import clip
from sgpipe.relations.names import faulty_names
from sgpipe.relations.predicates import PREDICATE_INDEX, PREDICATES

_BOX = ("x", "y", "w", "h")
_CLASS_NAMES = pa.array(PREDICATES)


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


class Endpoints:
    """Every object that the relationships of a span name: entries of the lookup, then those that only endpoints describe."""

    def __init__(self, context: Context, lookup: Lookup, object_key: str) -> None:
        self._context = context
        self._lookup = lookup
        self._id = attrgetter(object_key)
        self._own: list[ObjectRecord] = []
        self._own_position: list[NDArray] = []

    def resolve(
        self, records: Sequence[ObjectRecord], image: NDArray, position: NDArray
    ) -> NDArray[np.int64]:
        """Index of each endpoint: by its id, else by an id merged into it, else a new entry of its own."""
        ids = np.fromiter(map(self._id, records), np.int64, len(records))
        found = self._lookup.find(combined_keys(image, np.maximum(ids, 0)))
        found[(ids == MISSING) | (image < 0)] = -1
        open_rows = np.flatnonzero(found < 0)
        for row in open_rows.tolist():
            if (merged := records[row].merged_object_ids) and image[row] >= 0:
                hits = self._lookup.find(
                    combined_keys(np.full(len(merged), image[row]), np.array(merged, dtype=np.int64))
                )
                found[row] = next((hit for hit in hits.tolist() if hit >= 0), -1)
        open_rows = np.flatnonzero(found < 0)
        found[open_rows] = len(self._lookup.keys) + len(self._own) + np.arange(len(open_rows))
        self._own += [records[row] for row in open_rows.tolist()]
        self._own_position.append(position[open_rows])
        return found

    def table(self) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64], pa.ChunkedArray]:
        """Object ids, boxes within the image, reason codes and names of all entries."""
        own, lookup = self._own, self._lookup
        ids = np.fromiter(map(self._id, own), np.int64, len(own))
        position = np.concatenate(self._own_position) if own else np.zeros(0, dtype=np.int64)
        names = pa.array(map(self._context.names.__getitem__, given_names(own)), pa.string(), size=len(own))
        boxes = given_boxes(own)
        clipped = clip(boxes, self._context.widths[position], self._context.heights[position])
        codes = np.select(
            [
                ids == MISSING,
                pc.binary_length(names).to_numpy() == 0,
                faulty_names(names),
                (boxes[:, 2] <= 0) | (boxes[:, 3] <= 0),
                (clipped[:, 2] <= 0) | (clipped[:, 3] <= 0),
            ],
            [
                CODE[reason]
                for reason in ("id missing", "name empty", "name invalid", "box empty", "box outside image")
            ],
            0,
        )
        return (
            np.concatenate([lookup.object_ids, ids]),
            np.concatenate([lookup.boxes, clipped]),
            np.concatenate([np.zeros(len(lookup.keys), dtype=np.int64), codes]),
            pa.chunked_array([*lookup.names.chunks, names], pa.string()),
        )


def relation_rows(context: Context, codes_of: PredicateCodes, span: Span, seen: frozenset[int]) -> Rows:
    """Rows of one span. Raises `Malformed` if the span is no JSON list."""
    image_key, object_key, relation_key = context.setup.keys
    decoded = decode(span.read(), RelationshipsRecord, image_key)
    images = np.fromiter(map(attrgetter(image_key), decoded.records), np.int64, len(decoded.records))
    positions = context.positions(images)
    by_record = record_codes(positions, seen)
    flat = [item for record in decoded.records for item in record.relationships]
    owner = np.repeat(np.arange(len(images)), [len(record.relationships) for record in decoded.records])
    position = positions[owner] if len(flat) else np.zeros(0, dtype=np.int64)

    present = np.unique(positions[by_record == 0])
    lookup = context.lookups.of(present)
    image = np.where(by_record[owner] == 0, np.searchsorted(present, position), -1)
    endpoints = Endpoints(context, lookup, object_key)
    subject = endpoints.resolve([item.subject for item in flat], image, position)
    object_ = endpoints.resolve([item.object for item in flat], image, position)
    ids, boxes, endpoint_codes, names = endpoints.table()

    raw = [item.predicate for item in flat]
    relation_ids = np.fromiter(map(attrgetter(relation_key), flat), np.int64, len(flat))
    predicate = np.fromiter(map(codes_of.__getitem__, raw), np.int64, len(flat))
    reasons = [*REASONS, *codes_of.reasons]
    codes = np.select(
        [
            by_record[owner] > 0,
            relation_ids == MISSING,
            predicate < 0,
            endpoint_codes[subject] > 0,
            endpoint_codes[object_] > 0,
            ids[subject] == ids[object_],
        ],
        [
            by_record[owner],
            CODE["id missing"],
            len(REASONS) - 1 - predicate,
            endpoint_codes[subject],
            endpoint_codes[object_],
            CODE["self-loop"],
        ],
        0,
    )
    sound = np.flatnonzero(codes == 0)
    codes[sound[repeated(owner[sound], relation_ids[sound])]] = CODE["id repeated"]
    inverted = (predicate >= 0) & (predicate % 2 == 1)
    subject, object_ = np.where(inverted, object_, subject), np.where(inverted, subject, object_)
    sound = np.flatnonzero(codes == 0)
    said = owner[sound], ids[subject[sound]], predicate[sound] // 2, ids[object_[sound]]
    codes[sound[repeated(*said)]] = CODE["relation repeated"]

    keep, drop = np.flatnonzero(codes == 0), np.flatnonzero(codes)
    raws = pa.array(raw, pa.string())
    columns: dict[str, Any] = {
        "relationship_id": relation_ids[keep],
        "image_id": images[owner[keep]],
        "subject_id": ids[subject[keep]],
        "object_id": ids[object_[keep]],
        "subject": names.take(pa.array(subject[keep])),
        "predicate": _CLASS_NAMES.take(pa.array(predicate[keep] // 2)),
        "object": names.take(pa.array(object_[keep])),
        "raw_predicate": raws.take(pa.array(keep)),
        "source": pa.repeat("annotated", len(keep)),
    }
    for prefix, side in (("s", subject), ("o", object_)):
        columns |= {f"{prefix}{name}": boxes[side[keep], i].astype(np.float32) for i, name in enumerate(_BOX)}
    # the record reads subject - predicate - object as annotated, so the exchange of an inverse is undone for the eye
    first, last = np.where(inverted, object_, subject), np.where(inverted, subject, object_)
    record_index = np.array(decoded.index, dtype=np.int64)
    rejects = reject_table(
        "relationships.json",
        {
            "record": record_index[owner[drop]],
            "image_id": images[owner[drop]],
            "relationship_id": pa.array(relation_ids[drop], mask=relation_ids[drop] == MISSING),
            "reason": pa.array(reasons).take(pa.array(codes[drop])),
            "raw": pc.binary_join_element_wise(
                names.take(pa.array(first[drop])),
                raws.take(pa.array(drop)),
                names.take(pa.array(last[drop])),
                " | ",
            ),
        },
        decoded.invalid,
    )
    return Rows(
        decoded.count, len(flat) + len(decoded.invalid), present, pa.table(columns, schema=RELATIONS), rejects
    )
