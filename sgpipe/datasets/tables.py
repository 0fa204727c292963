"""Arrow schemas of the contracts between stages, and their one deterministic Parquet writer.

Boxes are `x, y, w, h` in pixels of the full image, origin at the top left. The same rows give the same bytes: column order
and types come from the schema, writer settings are fixed, and nothing that changes between runs is stored.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Self

import pyarrow as pa
import pyarrow.parquet as pq

from sgpipe.errors import DataError
from sgpipe.runs.atomic import atomic_path

BOX: Final = ("x", "y", "w", "h")
CROP: Final = [f"crop_{name}" for name in BOX]
ENDS: Final = [f"{side}{name}" for side in "so" for name in BOX]
"""Boxes of a subject and of an object."""


def _columns(dtype: pa.DataType) -> Callable[..., list[tuple[str, pa.DataType]]]:
    return lambda *names: [(name, dtype) for name in names]


_ids, _texts, _reals = _columns(pa.int64()), _columns(pa.string()), _columns(pa.float32())


IMAGES: Final = pa.schema([*_ids("image_id"), ("width", pa.int32()), ("height", pa.int32()), *_texts("url", "split")])
OBJECTS: Final = pa.schema([*_ids("object_id", "image_id"), *_texts("name", "raw_name"), *_reals(*BOX)])
ATTRIBUTES: Final = pa.schema([*_ids("object_id", "image_id"), *_texts("attribute")])
"""What a data set says of an object beside its name; written for data sets that say any."""
RELATIONS: Final = pa.schema(
    [
        *_ids("relationship_id", "image_id", "subject_id", "object_id"),
        *_texts("subject", "predicate", "object", "raw_predicate", "source"),
        *_reals(*ENDS),
    ]
)
REJECTS: Final = pa.schema([*_texts("file"), *_ids("record", "image_id", "relationship_id"), *_texts("reason", "raw")])
TRIPLES: Final = pa.schema(
    [
        *_texts("triple_id", "split"),
        *_ids("image_id", "relationship_id"),
        *_texts("subject", "predicate", "object", "prompt", "neutral_prompt"),
        ("concepts", pa.list_(pa.string(), 3)),
        *_texts("source"),
        *_reals(*CROP, *ENDS),
        ("objects", pa.list_(pa.string())),
        ("boxes", pa.list_(pa.list_(pa.float32(), 4))),
        ("triples", pa.list_(pa.struct([("subject", pa.int32()), ("predicate", pa.string()), ("object", pa.int32())]))),
    ]
)
"""Curated triples, each with its scene graph. `crop_*` is the region of the image that stands for the graph; `s*`/`o*` are boxes in
full-image pixels. The graph is `objects` (names), their `boxes` (fractions of the crop) and `triples` by number of object, the
row's own triple first."""
NEGATIVES: Final = pa.schema([*_texts("triple_id", "kind", "subject", "predicate", "object", "prompt"), ("changed", pa.int32())])
"""The triple of g⁻ in the place of the graph's triple number `changed`, how it was made (`swap`, `replace`), and g⁻ in words."""
PROMPTS: Final = pa.schema(_texts("triple_id", "condition", "predicate", "prompt"))
"""Prompts of a triple: `relational`, `neutral` (no predicate), `wrong` (another relation) or `conflicting` (its negative's)."""
PROMPT_INDEX: Final = pa.schema([*_texts("kind", "text", "shard"), *_ids("start", "count")])
"""Where a text's encoding is: `count` rows of its shard from `start` (one per prompt, one per token of a concept)."""
LATENT_INDEX: Final = pa.schema([*_texts("triple_id"), *_ids("image_id"), *_reals(*CROP), *_texts("shard"), *_ids("row")])
LATENT_REJECTS: Final = pa.schema([*_texts("triple_id"), *_ids("image_id"), *_texts("reason", "detail")])
MAP_ITEMS: Final = pa.schema([*_texts("triple_id", "predicate", "condition", "prompt_predicate"), *_reals("t")])
"""What a map is of: the triple and its class, the prompt's condition and the class that it names (null: none), and t (null: the
mean over a sampling). Files of maps add `saliency` and `cross`, see `sgpipe/attention_maps/files.py`."""

ROW_GROUP: Final = 1 << 17


@contextmanager
def plain_arrow() -> Iterator[None]:
    """Have pyarrow make many small tables in less time and memory.

    It imports pandas for the first array that it makes, if it is installed: half a second and 50 MiB. Its own allocator gives freed
    memory back to the system at once, and the next table gets it page by page. What asks for pandas' objects later gets them.
    """
    if "pandas" not in sys.modules:
        sys.modules["pandas"] = None  # type: ignore[assignment]  # an import finds none, and pyarrow remembers that
        with suppress(AttributeError):  # where the import gives this None instead of an ImportError
            pa.array([], pa.int64())
        del sys.modules["pandas"]
    usual = pa.default_memory_pool()
    pa.set_memory_pool(pa.system_memory_pool())
    try:
        yield
    finally:
        pa.set_memory_pool(usual)


def write_table(table: pa.Table, path: Path) -> None:
    """Write `table` to `path` atomically, as zstd Parquet whose bytes depend on the rows and the schema alone."""
    with atomic_path(path) as temporary, TableWriter(temporary, table.schema.remove_metadata()) as writer:
        writer.write(table)


class TableWriter:
    """Writes a table piece by piece; the bytes are those of `write_table` on the whole, however it was cut.

    At most one row group is held in memory. `rows` counts what was given.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.rows = 0
        self._schema = schema
        self._pending: list[pa.Table] = []
        self._waiting = 0
        few = [field.name for field in schema if field.type == pa.string() and field.name != "raw"]  # distinct values
        self._writer = pq.ParquetWriter(
            path, schema, compression="zstd", compression_level=3, store_schema=False, use_dictionary=few or False
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None and (self._waiting or self.rows == 0):
            self._flush(self._waiting)
        self._writer.close()

    def write(self, table: pa.Table) -> None:
        """Append rows; full row groups go to the file at once."""
        self._pending.append(table.replace_schema_metadata(None).cast(self._schema))
        self._waiting += table.num_rows
        self.rows += table.num_rows
        while self._waiting >= ROW_GROUP:
            self._flush(ROW_GROUP)

    def _flush(self, rows: int) -> None:
        whole = pa.concat_tables(self._pending) if self._pending else self._schema.empty_table()
        self._writer.write_table(whole.slice(0, rows).combine_chunks(), row_group_size=ROW_GROUP)
        self._waiting -= rows
        self._pending = [whole.slice(rows)] if self._waiting else []


def read_table(path: Path, schema: pa.Schema, columns: list[str] | None = None) -> pa.Table:
    """Read a contract table, refusing a file that is missing or whose columns are not those of `schema`."""
    if not path.is_file():
        raise DataError(f"{path}: no such table; run `dvc repro` for the stage that writes it")
    try:
        found = pq.read_schema(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file ({error}); delete it and run its stage again") from error
    wanted = columns or schema.names
    missing = [name for name in wanted if name not in found.names]
    if missing:
        raise DataError(f"{path}: columns {missing} are missing (found {found.names}); run its stage again")
    table = pq.read_table(path, columns=wanted)
    return table.cast(pa.schema([schema.field(name) for name in wanted]))
