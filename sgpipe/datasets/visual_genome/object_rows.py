"""One span of objects.json to rows of `objects.parquet`, lookup entries, and relations derived from boxes."""

from operator import attrgetter

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sgpipe.datasets.rows import BOX, Items, Objects, geometric_relations, object_tables
from sgpipe.datasets.visual_genome.context import Context, Rows, record_codes
from sgpipe.datasets.visual_genome.lookup import write_lookup
from sgpipe.datasets.visual_genome.records import ObjectRecord, ObjectsRecord, decode
from sgpipe.datasets.visual_genome.spans import Span


def annotated(
    context: Context, records: list[ObjectRecord], position: NDArray[np.int64]
) -> tuple[Objects, list[str], NDArray[np.float64]]:
    """Checked objects, their names (the first of `names`, else `name`) and boxes as annotated; `position` is of their images."""
    raw_names = [record.names[0] if record.names else record.name or "" for record in records]
    boxes = np.empty((len(records), 4))
    for column, name in enumerate(BOX):
        boxes[:, column] = np.fromiter(map(attrgetter(name), records), np.float64, len(records))
    ids = np.fromiter(map(attrgetter(context.setup.keys[1]), records), np.int64, len(records))
    names = pa.array(map(context.names.__getitem__, raw_names), pa.string(), size=len(raw_names))
    checked = Objects.of(ids, names, boxes, context.widths[position], context.heights[position])
    return checked, raw_names, boxes


def object_rows(context: Context, span: Span, number: int, seen: frozenset[int]) -> Rows:
    """Rows of one span; its lookup entries go to `objects-<number>.arrow`. Raises `Malformed` if the span is no JSON list."""
    image_key = context.setup.keys[0]
    decoded = decode(span.read(), ObjectsRecord, image_key)
    images = np.fromiter(map(attrgetter(image_key), decoded.records), np.int64, len(decoded.records))
    positions = context.positions(images)
    codes = record_codes(positions, seen)
    flat = [item for record in decoded.records for item in record.objects]
    counts = [len(record.objects) for record in decoded.records]
    items = Items.of("objects.json", decoded.index, images, codes, counts)
    position = positions[items.owner]
    objects, raw_names, boxes = annotated(context, flat, position)
    keep, kept, rejects = object_tables(items, objects, raw_names, boxes, decoded.invalid)
    merged = [
        (row, other)
        for row, index in enumerate(keep.tolist())
        if (others := flat[index].merged_object_ids)
        for other in others
    ]
    pairs = np.array(merged, dtype=np.int64).reshape(-1, 2)
    write_lookup(
        context.setup.folder / f"objects-{number}.arrow", position[keep], objects.ids[keep], pairs, kept
    )
    geometric = context.setup.geometric
    derived = geometric_relations(geometric, kept, objects.boxes[keep]) if geometric.per_image else None
    present = np.unique(positions[codes == 0])
    return Rows(decoded.count, len(flat) + len(decoded.invalid), present, kept, rejects, derived)
