"""Files of the evaluation: packed images, and what judges say of them and of real ones.

Images of one arm in one Parquet file: a row group per shard, each image as PNG bytes, so that nothing is lost.
"""

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from sgpipe.errors import DataError
from sgpipe.runs.atomic import atomic_path

if TYPE_CHECKING:
    import polars as pl

FILE = "images.parquet"
FACTS: Final = b"sgpipe"
"""Key of a file's facts (JSON) in its metadata."""
Pixels = NDArray[np.uint8]
_IMAGE: Final = [("triple_id", pa.string()), ("prompt", pa.string()), ("graph", pa.string()), ("seed", pa.int64())]
_SCORES: Final = [("positive", pa.float32()), ("negative", pa.float32())]

SAMPLES: Final = pa.schema([*_IMAGE, ("text", pa.string()), ("png", pa.binary())])
"""Images of one arm: prompt condition, graph (`none` for an arm that is given no graphs), the words, lossless pixels."""
VERDICTS: Final = pa.schema(
    [("arm", pa.string()), *_IMAGE, ("judge", pa.string()), ("edge", pa.int64()), ("duplicate", pa.bool_()), *_SCORES]
)
"""A judge's scores on one image of what a triple of the graph says, c⁺, and of what stands against it, c⁻; null where it abstains.

`edge` numbers the graph's triples; 0 is the one that g⁻ turns. `duplicate`: whether it sees an object of the graph twice; null
for a judge that does not count.
"""
CALIBRATION: Final = pa.schema(
    [("judge", pa.string()), ("triple_id", pa.string()), ("predicate", pa.string()), ("question", pa.string()), *_SCORES]
)
"""A judge's scores on ground-truth images, see `calibration.QUESTIONS`."""
FEATURES: Final = pa.schema([("arm", pa.string()), *_IMAGE, ("judge", pa.string()), ("feature", pa.binary())])
"""A judge's embedding of an image, of length 1: float16 `[D]`, little-endian. As bytes, since Parquet writes lists of halves twenty
times slower."""

QUALITY: Final = pa.schema(
    [("network", pa.string()), ("source", pa.string()), *_IMAGE, ("feature", pa.binary()), ("logits", pa.binary()),
     ("clip_score", pa.float32())]
)  # fmt: skip
"""What a network of section `quality` makes of an image: features, and logits of its classes, float32, little-endian; and its CLIP
score, null for a network without text.

`source` is an arm, or `REAL` or `REFERENCE` (no prompt, graph and seed then).
"""
REAL, REFERENCE = ".real", ".reference"
"""Ground-truth images: of the val triples that are evaluated, and of train triples."""


def to_png(pixels: Pixels) -> bytes:
    """PNG of an image `[H, W, 3]`, 0–255."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


def from_png(data: bytes) -> Pixels:
    """Pixels `[H, W, 3]` of a PNG."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def write_image_file(tables: Iterable[pa.Table], path: Path, facts: Mapping[str, Any]) -> int:
    """Write tables of `SAMPLES` as one file, a row group each, with `facts` in its metadata; how many images it holds."""
    count = 0
    with (
        atomic_path(path) as temporary,
        pq.ParquetWriter(temporary, SAMPLES, compression="none", use_dictionary=SAMPLES.names[:3], store_schema=False) as writer,
    ):
        for table in tables:
            count += table.num_rows
            writer.write_table(table.cast(SAMPLES).combine_chunks(), row_group_size=max(1, table.num_rows))
        writer.add_key_value_metadata({FACTS: json.dumps(dict(facts), sort_keys=True)})
    return count


def grid(rows: "pl.DataFrame", columns: Sequence[str], triple_ids: Sequence[str], seeds: Sequence[int]) -> list[Any] | None:
    """Columns of `rows` as arrays `[T, S]` by `triple_id` and `seed`, null as NaN; None unless each is there just once."""
    import polars as pl

    wanted = pl.DataFrame({"triple_id": np.repeat(triple_ids, len(seeds)), "seed": list(seeds) * len(triple_ids)})
    found = wanted.join(rows, on=["triple_id", "seed"], maintain_order="left")
    if not found.n_unique(["triple_id", "seed"]) == len(found) == len(wanted):
        return None
    return [found[name].to_numpy().reshape(len(triple_ids), len(seeds)) for name in columns]


class ImageFeatures:
    """Image embeddings of one judge, from rows of `FEATURES`; `judge` is its name. Raises `DataError` where their sizes differ."""

    def __init__(self, table: pa.Table) -> None:
        import polars as pl

        (self.judge,) = table["judge"].unique().to_pylist()
        values = [np.frombuffer(value, "<f2") for value in table["feature"].to_pylist()]
        if len({len(value) for value in values}) > 1:
            raise DataError(f"features of judge {self.judge} differ in size; run `dvc repro judge` again")
        self._values = np.stack(values)
        self._items = pl.DataFrame(table.drop_columns(["judge", "feature"])).with_row_index("row")

    def of(self, arm: str, prompt: str, graph: str, triple_ids: Sequence[str], seeds: Sequence[int]) -> NDArray[np.float64]:
        """Unit vectors `[T, S, D]` of a condition's images. Raises `DataError` if one is missing."""
        found = grid(self._items.filter(arm=arm, prompt=prompt, graph=graph), ["row"], triple_ids, seeds)
        if found is None:
            raise DataError(f"features of {arm}, {prompt}, {graph} are not those of all images asked for; run `dvc repro judge`")
        values = self._values[found[0]].astype(np.float64)
        return values / np.linalg.norm(values, axis=-1, keepdims=True)


class ImageFile:
    """A file of images. `facts` is its metadata (arm, adapter, …), `items` its rows without the pixels.

    Raises `DataError` for a file that is missing, broken or holds no images.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        if not self.path.is_file():
            raise DataError(f"{self.path}: no such file of images; run `dvc repro` for the arm that samples it")
        try:
            self._file = pq.ParquetFile(self.path, memory_map=True)
            self.facts: dict[str, Any] = json.loads((self._file.metadata.metadata or {})[FACTS])
            self.arm: str = self.facts["arm"]
            self.items = self._file.read(columns=SAMPLES.names[:-1])
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            raise DataError(f"{self.path}: no file of images ({error}); sample the arm again") from error

    def __len__(self) -> int:
        return self.items.num_rows

    def rows(self, prompt: str, graph: str, triple_ids: Sequence[str], seeds: Sequence[int]) -> NDArray[np.int64]:
        """Rows `[T, S]` of the images of a condition. Raises `DataError` if one is missing."""
        import polars as pl

        items = pl.DataFrame(self.items).with_row_index("row").filter(prompt=prompt, graph=graph)
        found = grid(items, ["row"], triple_ids, seeds)
        if found is None:
            needed = len(triple_ids) * len(seeds)
            raise DataError(f"{self.path}: not all {needed} images of {prompt}, {graph}; sample the arm again")
        return found[0]

    def read(self, rows: Sequence[int] | NDArray[np.int64]) -> Pixels:
        """Images `[N, H, W, 3]` at these rows, which are best close together."""
        starts = np.cumsum([0] + [self._file.metadata.row_group(i).num_rows for i in range(self._file.num_row_groups)])
        groups = np.searchsorted(starts, rows, side="right") - 1
        held = {group: self._file.read_row_group(group, columns=["png"])["png"] for group in np.unique(groups).tolist()}
        return np.stack([from_png(held[group][int(row - starts[group])].as_py()) for row, group in zip(rows, groups, strict=True)])
