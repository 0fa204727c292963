"""Files of maps: one Parquet per layer group, a row group per shard, maps as plain bytes.

A map column holds float16 `[K, H, W]`, little-endian, as a fixed-size binary value: Arrow reads such a column at memory's speed,
but a fixed-size list of halves fifty times slower, since Parquet stores levels with every value of a list. What H, W, K and the
rest are stands in the file's metadata, under `sgpipe`.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from torch import Tensor

from sgpipe.datasets.tables import MAP_ITEMS
from sgpipe.errors import DataError, ModelError
from sgpipe.runs.atomic import atomic_path

KINDS = ("saliency", "cross")
_KEY = "sgpipe"
Halves = NDArray[np.float16]


def map_bytes(maps: Tensor) -> pa.Array:
    """Maps `[B, …]` as B fixed-size binary values of float16. Raises `ModelError` where one is beyond float16."""
    halves = maps.half()
    if not halves.isfinite().all():
        raise ModelError(f"maps reach {maps.abs().max():.4g}, float16 ends at 65504; set maps.normalisation to concepts or patches")
    values = halves.cpu().contiguous().numpy()
    width = values[0].nbytes
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(values), [None, pa.py_buffer(values.tobytes())])


def map_table(items: pa.Table, saliency: Tensor, cross: Tensor) -> pa.Table:
    """Rows of `MAP_ITEMS` with their maps `[B, K, H, W]` as columns `saliency` and `cross`."""
    table = items.select(MAP_ITEMS.names)
    for name, maps in zip(KINDS, (saliency, cross), strict=True):
        table = table.append_column(name, map_bytes(maps))
    return table


def map_schema(shape: tuple[int, int, int]) -> pa.Schema:
    """Columns of a file of maps `[K, H, W]`."""
    values = pa.binary(2 * int(np.prod(shape)))
    return pa.schema([*MAP_ITEMS, *((name, values) for name in KINDS)])


def write_maps(tables: Iterable[pa.Table], path: Path, facts: Mapping[str, Any]) -> None:
    """Write tables of maps as one file, a row group each; the bytes depend on these and on `facts` alone.

    `facts` go into the file's metadata; `facts["shape"]` is [K, H, W].
    """
    schema = map_schema(tuple(facts["shape"]))
    with (
        atomic_path(path) as temporary,
        pq.ParquetWriter(temporary, schema, compression="none", use_dictionary=MAP_ITEMS.names[:4], store_schema=False) as writer,
    ):
        for table in tables:
            whole = table.cast(schema).combine_chunks()
            writer.write_table(whole, row_group_size=max(1, table.num_rows))
        writer.add_key_value_metadata({_KEY: json.dumps(dict(facts), sort_keys=True)})


class MapFile:
    """A file of maps, mapped into memory. `facts` is its metadata; `items` its rows of `MAP_ITEMS`.

    Raises `DataError` for a file that is missing, broken or no file of maps.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise DataError(f"{path}: no such file of maps; run `dvc repro saliency saliency_noised`")
        try:
            self._file = pq.ParquetFile(path, memory_map=True)
            metadata = self._file.metadata.metadata or {}
            self.facts: dict[str, Any] = json.loads(metadata[_KEY.encode()])
            self.shape: tuple[int, int, int] = tuple(self.facts["shape"])
            self.items = self._file.read(columns=MAP_ITEMS.names)
        except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}: no file of maps ({error}); run its stage again") from error
        self.path = path

    def __len__(self) -> int:
        return self.items.num_rows

    @property
    def row_groups(self) -> int:
        """How many row groups `read` can be asked for."""
        return self._file.num_row_groups

    def read(self, kind: str, row_group: int | None = None) -> Halves:
        """Maps `[N, K, H, W]`, float16, of the whole file or of one row group."""
        if kind not in KINDS:
            raise ValueError(f"kind: got {kind!r}; valid: {', '.join(KINDS)}")
        if row_group is None:
            table = self._file.read(columns=[kind])
        else:
            table = self._file.read_row_group(row_group, columns=[kind])
        parts = [self._view(chunk) for chunk in table.column(kind).chunks]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _view(self, chunk: pa.Array) -> Halves:
        width = chunk.type.byte_width
        if width != 2 * int(np.prod(self.shape)):
            raise DataError(f"{self.path}: maps of {width} bytes do not fit their shape {self.shape}; run its stage again")
        flat = np.frombuffer(chunk.buffers()[1], np.float16)
        first = chunk.offset * width // 2
        return flat[first : first + len(chunk) * width // 2].reshape(len(chunk), *self.shape)
