"""One span of each file to rows of its table and to what the later passes look up.

Spans of image_data.json leave the sizes of the images, those of objects.json lookup entries and relations derived from boxes.
"""

from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sgpipe.datasets.base import MISSING
from sgpipe.datasets.rows import (
    BOX,
    Images,
    Items,
    Objects,
    PredicateCodes,
    geometric_relations,
    image_tables,
    object_tables,
    relation_tables,
)
from sgpipe.datasets.visual_genome.context import Context, Rows, Setup, record_codes
from sgpipe.datasets.visual_genome.lookup import Lookup, combined_keys, write_lookup
from sgpipe.datasets.visual_genome.records import Decoded, ImageRecord, ObjectRecord, ObjectsRecord, RelationshipsRecord, decode
from sgpipe.datasets.visual_genome.spans import Span


def _column(records: Sequence[Any], name: str) -> NDArray[np.int64]:
    return np.fromiter(map(attrgetter(name), records), np.int64, len(records))


class ImagesReader:
    """Reads spans of image_data.json in order; keeps the id, width and height of every image (24 bytes each)."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._parts: list[NDArray[np.int64]] = []
        self._seen: set[int] = set()

    def rows(self, span: Span, number: int, seen: frozenset[int]) -> Rows:
        """Rows of one span. Raises `Malformed` if the span is no JSON list."""
        key = self._setup.keys[0]
        decoded = decode(span.read(), ImageRecord, key)
        ids, widths, heights = (_column(decoded.records, name) for name in (key, "width", "height"))
        urls = [record.url for record in decoded.records]
        images = Images(np.array(decoded.index, dtype=np.int64), ids, widths, heights, urls)
        again, kept, rejects = image_tables("image_data.json", images, self._seen, decoded.invalid)
        self._parts.append(np.stack([ids, widths, heights])[:, ~again])
        return Rows(decoded.count, decoded.count, np.zeros(0, dtype=np.int64), kept, rejects)

    def save(self) -> int:
        """Leave ids and sizes for the other passes in `images.npy`, sorted by id; the number of images."""
        images = np.concatenate(self._parts, axis=1)
        np.save(self._setup.folder / "images.npy", images[:, np.argsort(images[0])])
        return images.shape[1]


def _items(
    context: Context, decoded: Decoded[Any], counts: list[int], file: str, seen: frozenset[int]
) -> tuple[Items, NDArray[np.int64], NDArray[np.int64]]:
    """The items of decoded records, `counts` of each; the position of each one's image, and of the images that are sound."""
    images = _column(decoded.records, context.setup.keys[0])
    positions = context.positions(images)
    codes = record_codes(positions, seen)
    items = Items.of(file, decoded.index, images, codes, counts)
    return items, positions[items.owner], np.unique(positions[codes == 0])


def annotated(
    context: Context, records: list[ObjectRecord], position: NDArray[np.int64]
) -> tuple[Objects, list[str], NDArray[np.float64]]:
    """Checked objects, their names (the first of `names`, else `name`) and boxes as annotated; `position` is of their images."""
    raw_names = [record.names[0] if record.names else record.name or "" for record in records]
    boxes = np.empty((len(records), 4))
    for column, name in enumerate(BOX):
        boxes[:, column] = np.fromiter(map(attrgetter(name), records), np.float64, len(records))
    ids = _column(records, context.setup.keys[1])
    names = pa.array(map(context.names.__getitem__, raw_names), pa.string(), size=len(raw_names))
    checked = Objects.of(ids, names, boxes, context.widths[position], context.heights[position])
    return checked, raw_names, boxes


def object_rows(context: Context, span: Span, number: int, seen: frozenset[int]) -> Rows:
    """Rows of one span; its lookup entries go to `objects-<number>.arrow`. Raises `Malformed` if the span is no JSON list."""
    decoded = decode(span.read(), ObjectsRecord, context.setup.keys[0])
    flat = [item for record in decoded.records for item in record.objects]
    counts = [len(record.objects) for record in decoded.records]
    items, position, present = _items(context, decoded, counts, "objects.json", seen)
    objects, raw_names, boxes = annotated(context, flat, position)
    keep, kept, rejects = object_tables(items, objects, raw_names, boxes, decoded.invalid)
    merged = [
        (row, other) for row, index in enumerate(keep.tolist()) if (others := flat[index].merged_object_ids) for other in others
    ]
    pairs = np.array(merged, dtype=np.int64).reshape(-1, 2)
    write_lookup(context.setup.folder / f"objects-{number}.arrow", position[keep], objects.ids[keep], pairs, kept)
    geometric = context.setup.geometric
    derived = geometric_relations(geometric, kept, objects.boxes[keep]) if geometric.per_image else None
    return Rows(decoded.count, len(flat) + len(decoded.invalid), present, kept, rejects, derived)


class Endpoints:
    """Every object that the relationships of a span name: entries of the lookup, then those that only endpoints describe."""

    def __init__(self, context: Context, lookup: Lookup) -> None:
        self._context = context
        self._lookup = lookup
        self._own: list[ObjectRecord] = []
        self._own_position: list[NDArray] = []

    def resolve(self, records: Sequence[ObjectRecord], image: NDArray, position: NDArray) -> NDArray[np.int64]:
        """Index of each endpoint: by its id, else by an id merged into it, else a new entry of its own."""
        ids = _column(records, self._context.setup.keys[1])
        found = self._lookup.find(combined_keys(image, np.maximum(ids, 0)))
        found[(ids == MISSING) | (image < 0)] = -1
        open_rows = np.flatnonzero(found < 0)
        for row in open_rows.tolist():
            if (merged := records[row].merged_object_ids) and image[row] >= 0:
                hits = self._lookup.find(combined_keys(np.full(len(merged), image[row]), np.array(merged, dtype=np.int64)))
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
    flat = [item for record in decoded.records for item in record.relationships]
    counts = [len(record.relationships) for record in decoded.records]
    items, position, present = _items(context, decoded, counts, "relationships.json", seen)
    image = np.where(items.codes == 0, np.searchsorted(present, position), -1)
    ends = Endpoints(context, context.lookups.of(present))
    subject = ends.resolve([item.subject for item in flat], image, position)
    object_ = ends.resolve([item.object for item in flat], image, position)
    ids, raw = _column(flat, relation_key), [item.predicate for item in flat]
    kept, rejects = relation_tables(items, ids, raw, codes_of, subject, object_, ends.table(), decoded.invalid)
    return Rows(decoded.count, len(flat) + len(decoded.invalid), present, kept, rejects)
