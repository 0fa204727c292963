"""Arrow schemas of the contracts between stages, and their one deterministic Parquet writer.

Boxes are `x, y, w, h` in pixels of the full image, origin at the top left. The same rows give the same bytes: column order
and types come from the schema, writer settings are fixed, and nothing that changes between runs is stored.
"""

from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from sgpipe.errors import DataError
from sgpipe.runs.atomic import atomic_path

_BOX: Final = [(name, pa.float32()) for name in ("x", "y", "w", "h")]
_SUBJECT_BOX: Final = [(f"s{name}", dtype) for name, dtype in _BOX]
_OBJECT_BOX: Final = [(f"o{name}", dtype) for name, dtype in _BOX]

IMAGES: Final = pa.schema(
    [
        ("image_id", pa.int64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("url", pa.string()),
        ("split", pa.string()),
    ]
)
OBJECTS: Final = pa.schema(
    [
        ("object_id", pa.int64()),
        ("image_id", pa.int64()),
        ("name", pa.string()),
        ("raw_name", pa.string()),
        *_BOX,
    ]
)
RELATIONS: Final = pa.schema(
    [
        ("relationship_id", pa.int64()),
        ("image_id", pa.int64()),
        ("subject_id", pa.int64()),
        ("object_id", pa.int64()),
        ("subject", pa.string()),
        ("predicate", pa.string()),
        ("object", pa.string()),
        ("raw_predicate", pa.string()),
        ("source", pa.string()),
        *_SUBJECT_BOX,
        *_OBJECT_BOX,
    ]
)
REJECTS: Final = pa.schema(
    [
        ("file", pa.string()),
        ("record", pa.int64()),
        ("image_id", pa.int64()),
        ("relationship_id", pa.int64()),
        ("reason", pa.string()),
        ("raw", pa.string()),
    ]
)
TRIPLES: Final = pa.schema(
    [
        ("triple_id", pa.string()),
        ("split", pa.string()),
        ("image_id", pa.int64()),
        ("relationship_id", pa.int64()),
        ("subject", pa.string()),
        ("predicate", pa.string()),
        ("object", pa.string()),
        ("prompt", pa.string()),
        ("neutral_prompt", pa.string()),
        ("concepts", pa.list_(pa.string(), 3)),
        ("source", pa.string()),
        *[(f"crop_{name}", dtype) for name, dtype in _BOX],
        *_SUBJECT_BOX,
        *_OBJECT_BOX,
    ]
)
"""Curated triples. `crop_*` is the region of the image that stands for the triple; `s*`/`o*` are boxes in full-image pixels."""
NEGATIVES: Final = pa.schema(
    [
        ("triple_id", pa.string()),
        ("kind", pa.string()),
        ("subject", pa.string()),
        ("predicate", pa.string()),
        ("object", pa.string()),
    ]
)


def write_table(table: pa.Table, path: Path, row_group_size: int = 1 << 17) -> None:
    """Write `table` to `path` atomically, as zstd Parquet whose bytes depend on the rows and the schema alone."""
    with atomic_path(path) as temporary:
        pq.write_table(
            table.replace_schema_metadata(None),
            temporary,
            compression="zstd",
            compression_level=3,
            row_group_size=row_group_size,
            store_schema=False,
        )


def read_table(path: Path, schema: pa.Schema, columns: list[str] | None = None) -> pa.Table:
    """Read a contract table, refusing a file that is missing or whose columns are not those of `schema`."""
    if not path.is_file():
        raise DataError(f"{path}: no such table; run `dvc repro` for the stage that writes it")
    try:
        found = pq.read_schema(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(
            f"{path}: not a readable Parquet file ({error}); delete it and run its stage again"
        ) from error
    wanted = columns or schema.names
    missing = [name for name in wanted if name not in found.names]
    if missing:
        raise DataError(f"{path}: columns {missing} are missing (found {found.names}); run its stage again")
    table = pq.read_table(path, columns=wanted)
    return table.cast(pa.schema([schema.field(name) for name in wanted]))
