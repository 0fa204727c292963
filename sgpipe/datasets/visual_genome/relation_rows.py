"""One span of relationships.json to rows of `relations.parquet`."""

from collections.abc import Sequence
from operator import attrgetter

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sgpipe.datasets.base import MISSING
from sgpipe.datasets.rows import Items, Objects, PredicateCodes, relation_tables
from sgpipe.datasets.visual_genome.context import Context, Rows, record_codes
from sgpipe.datasets.visual_genome.lookup import Lookup, combined_keys
from sgpipe.datasets.visual_genome.object_rows import annotated
from sgpipe.datasets.visual_genome.records import ObjectRecord, RelationshipsRecord, decode
from sgpipe.datasets.visual_genome.spans import Span


class Endpoints:
    """Every object that the relationships of a span name: entries of the lookup, then those that only endpoints describe."""

    def __init__(self, context: Context, lookup: Lookup) -> None:
        self._context = context
        self._lookup = lookup
        self._id = attrgetter(context.setup.keys[1])
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

    def table(self) -> Objects:
        """All entries, checked."""
        lookup = self._lookup
        position = np.concatenate(self._own_position) if self._own else np.zeros(0, dtype=np.int64)
        own, _, _ = annotated(self._context, self._own, position)
        return Objects(
            np.concatenate([lookup.object_ids, own.ids]),
            pa.chunked_array([*lookup.names.chunks, own.names], pa.string()),
            np.concatenate([lookup.boxes, own.boxes]),
            np.concatenate([np.zeros(len(lookup.keys), dtype=np.int64), own.codes]),
        )


def relation_rows(context: Context, codes_of: PredicateCodes, span: Span, seen: frozenset[int]) -> Rows:
    """Rows of one span. Raises `Malformed` if the span is no JSON list."""
    image_key, _, relation_key = context.setup.keys
    decoded = decode(span.read(), RelationshipsRecord, image_key)
    images = np.fromiter(map(attrgetter(image_key), decoded.records), np.int64, len(decoded.records))
    positions = context.positions(images)
    by_record = record_codes(positions, seen)
    flat = [item for record in decoded.records for item in record.relationships]
    counts = [len(record.relationships) for record in decoded.records]
    items = Items.of("relationships.json", decoded.index, images, by_record, counts)
    position = positions[items.owner]

    present = np.unique(positions[by_record == 0])
    image = np.where(items.codes == 0, np.searchsorted(present, position), -1)
    ends = Endpoints(context, context.lookups.of(present))
    subject = ends.resolve([item.subject for item in flat], image, position)
    object_ = ends.resolve([item.object for item in flat], image, position)
    ids = np.fromiter(map(attrgetter(relation_key), flat), np.int64, len(flat))
    raw = [item.predicate for item in flat]
    kept, rejects = relation_tables(
        items, ids, raw, codes_of, subject, object_, ends.table(), decoded.invalid
    )
    return Rows(decoded.count, len(flat) + len(decoded.invalid), present, kept, rejects)
