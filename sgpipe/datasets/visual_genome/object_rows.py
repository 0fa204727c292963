"""One span of objects.json to rows of `objects.parquet`, lookup entries, and relations derived from boxes."""

from operator import attrgetter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sgpipe.datasets.config import Geometric
from sgpipe.datasets.tables import OBJECTS, RELATIONS
from sgpipe.datasets.visual_genome.context import (
    CODE,
    REASONS,
    Context,
    Rows,
    record_codes,
    reject_table,
    repeated,
)
from sgpipe.datasets.visual_genome.lookup import write_lookup
from sgpipe.datasets.visual_genome.records import MISSING, ObjectRecord, ObjectsRecord, decode
from sgpipe.datasets.visual_genome.spans import Span
from sgpipe.relations.boxes import clip, geometric_relation
from sgpipe.relations.names import faulty_names
from sgpipe.runs.hashing import hashed

_BOX = ("x", "y", "w", "h")


def given_names(records: list[ObjectRecord]) -> list[str]:
    """The first of `names`, else `name`, as annotated; empty if there is neither."""
    return [record.names[0] if record.names else record.name or "" for record in records]


def given_boxes(records: list[ObjectRecord]) -> NDArray[np.float64]:
    """`[N, 4]` boxes as annotated."""
    boxes = np.empty((len(records), 4))
    for column, name in enumerate(_BOX):
        boxes[:, column] = np.fromiter(map(attrgetter(name), records), np.float64, len(records))
    return boxes


def object_rows(context: Context, span: Span, number: int, seen: frozenset[int]) -> Rows:
    """Rows of one span; its lookup entries go to `objects-<number>.arrow`. Raises `Malformed` if the span is no JSON list."""
    image_key, object_key, _ = context.setup.keys
    decoded = decode(span.read(), ObjectsRecord, image_key)
    images = np.fromiter(map(attrgetter(image_key), decoded.records), np.int64, len(decoded.records))
    positions = context.positions(images)
    codes_by_record = record_codes(positions, seen)
    flat = [item for record in decoded.records for item in record.objects]
    owner = np.repeat(np.arange(len(images)), [len(record.objects) for record in decoded.records])
    ids = np.fromiter(map(attrgetter(object_key), flat), np.int64, len(flat))
    raw_names = given_names(flat)
    names = pa.array(map(context.names.__getitem__, raw_names), pa.string(), size=len(raw_names))
    boxes = given_boxes(flat)
    position = positions[owner] if len(flat) else np.zeros(0, dtype=np.int64)
    clipped = clip(boxes, context.widths[position], context.heights[position])
    codes = np.select(
        [
            codes_by_record[owner] > 0,
            ids == MISSING,
            pc.binary_length(names).to_numpy() == 0,
            faulty_names(names),
            (boxes[:, 2] <= 0) | (boxes[:, 3] <= 0),
            (clipped[:, 2] <= 0) | (clipped[:, 3] <= 0),
        ],
        [
            codes_by_record[owner],
            CODE["id missing"],
            CODE["name empty"],
            CODE["name invalid"],
            CODE["box empty"],
            CODE["box outside image"],
        ],
        0,
    )
    sound = np.flatnonzero(codes == 0)
    codes[sound[repeated(owner[sound], ids[sound])]] = CODE["id repeated"]
    keep = np.flatnonzero(codes == 0)
    rows = pa.array(keep)
    columns: dict[str, Any] = {
        "object_id": ids[keep],
        "image_id": images[owner[keep]],
        "name": names.take(rows),
        "raw_name": pa.array(raw_names, pa.string()).take(rows),
    }
    columns |= {name: clipped[keep, column].astype(np.float32) for column, name in enumerate(_BOX)}
    kept = pa.table(columns, schema=OBJECTS)
    merged = [
        (row, other)
        for row, index in enumerate(keep.tolist())
        if (others := flat[index].merged_object_ids)
        for other in others
    ]
    pairs = np.array(merged, dtype=np.int64).reshape(-1, 2)
    write_lookup(context.setup.folder / f"objects-{number}.arrow", position[keep], ids[keep], pairs, kept)
    drop = np.flatnonzero(codes)
    record_index = np.array(decoded.index, dtype=np.int64)
    rejects = reject_table(
        "objects.json",
        {
            "record": record_index[owner[drop]],
            "image_id": images[owner[drop]],
            "relationship_id": pa.nulls(len(drop), pa.int64()),
            "reason": [REASONS[code] for code in codes[drop]],
            "raw": [f"{ids[i]}: {raw_names[i]!r} {boxes[i].tolist()}" for i in drop],
        },
        decoded.invalid,
    )
    derived = None
    if context.setup.geometric.per_image:
        derived = _geometric(context.setup.geometric, position[keep], kept, clipped[keep])
    present = np.unique(positions[codes_by_record == 0])
    return Rows(decoded.count, len(flat) + len(decoded.invalid), present, kept, rejects, derived)


def _geometric(params: Geometric, position: NDArray, objects: pa.Table, boxes: NDArray) -> pa.Table:
    """At most `params.per_image` relations per image: every object is paired with one other, by hash, and hashes choose."""
    ids = objects["object_id"].to_numpy()
    order = np.lexsort([ids, position])
    _, start, counts = np.unique(position[order], return_index=True, return_counts=True)
    first, size = np.repeat(start, counts), np.repeat(counts, counts)
    rank = hashed(params.seed, "geometric", objects["image_id"].to_numpy()[order], ids[order])
    step = 1 + rank % np.maximum(size - 1, 1).astype(np.uint64)
    partner = first + (np.arange(len(order)) - first + step.astype(np.int64)) % np.maximum(size, 1)
    s, o = order, order[partner] if len(order) else order
    classes, exchange = geometric_relation(boxes[s], boxes[o])
    s, o = np.where(exchange, o, s), np.where(exchange, s, o)
    names = np.array(objects["name"].to_pylist(), dtype=object)
    good = (
        (size > 1)
        & (names[s] != names[o])
        & np.isin(classes, params.classes)
        & (boxes[s] != boxes[o]).any(axis=1)
    )
    rows = np.flatnonzero(good)
    rows = rows[np.lexsort([rank[rows], first[rows]])]
    _, begin, many = np.unique(first[rows], return_index=True, return_counts=True)
    place = np.arange(len(rows)) - np.repeat(begin, many)
    rows, place = rows[place < params.per_image], place[place < params.per_image]
    columns: dict[str, Any] = {
        "relationship_id": -1 - place,
        "image_id": objects["image_id"].to_numpy()[s[rows]],
        "subject_id": ids[s[rows]],
        "object_id": ids[o[rows]],
        "subject": names[s[rows]],
        "predicate": classes[rows].astype(object),
        "object": names[o[rows]],
        "raw_predicate": pa.nulls(len(rows), pa.string()),
        "source": pa.repeat("geometric", len(rows)),
    }
    for prefix, side in (("s", s), ("o", o)):
        columns |= {f"{prefix}{name}": boxes[side[rows], i].astype(np.float32) for i, name in enumerate(_BOX)}
    return pa.table(columns, schema=RELATIONS)
