"""Features of crops, made once by the image tower: of the whole crop, and of it with one object's box blanked.

SGDiff's own mask subtracts every box from 1, so that where boxes overlap it goes negative, and it hides the whole image
whenever the `__image__` node, whose box is the full image, is drawn. Here a pixel is hidden or not, and boxes are those of
real objects alone.
"""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sgpipe.backbones.cache_files import open_tensors
from sgpipe.backbones.images import COUNTS, CropRejected, read_crop
from sgpipe.backbones.strict import write_tensors
from sgpipe.datasets.images import LoadImage
from sgpipe.errors import DataError
from sgpipe.graph_encoder.tower import ImageTower
from sgpipe.runs.atomic import write_json
from sgpipe.runs.shards import Make, Shard, Tick


def hidden_pixels(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """True `[N, H, W]` where the centre of a pixel lies in the box. `boxes` `[N, 4]` are x0, y0, x1, y1 in 0–1 of the image that
    the tower sees.
    """
    y, x = ((torch.arange(n, dtype=boxes.dtype, device=boxes.device) + 0.5) / n for n in size)
    x0, y0, x1, y1 = boxes[:, :, None].unbind(1)
    return ((y >= y0) & (y < y1))[:, :, None] & ((x >= x0) & (x < x1))[:, None, :]


def hidden_patches(pixels: Tensor, patch: int) -> Tensor:
    """True `[N, P]` for the patches of a tower, in row order, of which any pixel is hidden."""
    return F.max_pool2d(pixels.float()[:, None], patch).flatten(1) > 0


_FILE = "features.safetensors"


def feature_maker(tower: ImageTower, load: LoadImage, crops: pl.DataFrame, batch_size: int, encoder: str) -> Make:
    """What fills a shard: `item`, `patches`, `rest` `[n, P, F]` in float16 and `region` `[n, P]` of every crop that can be read.

    A crop is squashed to the tower's square, and mirrored where it says so. `load` gives an image or raises `DataError`:
    then its crops are left out, and counted by reason.
    """
    where = crops.select("image_id", "mirrored", "crop_x", "crop_y", "crop_w", "crop_h").rows()
    boxes = torch.tensor(crops.select("x0", "y0", "x1", "y1").rows())
    side = tower.side

    def make(shard: Shard, folder: Path, tick: Tick) -> None:
        made: dict[str, list[Tensor]] = {name: [] for name in ("item", "patches", "rest", "region")}
        counts: Counter[str] = Counter()
        for batch in shard.batches(batch_size):
            items: list[int] = []
            pictures: list[NDArray[np.uint8]] = []
            for item in range(batch.start, batch.stop):
                image, mirrored, *box = where[item]
                try:
                    picture, scaled = read_crop(load, image, (box[0], box[1], box[2], box[3]), side)
                except CropRejected as error:
                    counts[error.reason] += 1
                    continue
                counts["rescaled"] += scaled
                items.append(item)
                pictures.append(picture[:, ::-1] if mirrored else picture)
            if items:
                hidden = hidden_pixels(boxes[items], (side, side))
                pixels = tower.pixels(np.stack(pictures))
                blanked = pixels.masked_fill(hidden[:, None].to(pixels.device), 0.0)
                made["item"].append(torch.tensor(items))
                made["patches"].append(tower.features(pixels).half().cpu())
                made["rest"].append(tower.features(blanked).half().cpu())
                made["region"].append(hidden_patches(hidden, side // tower.grid))
            tick(batch.stop - batch.start)
        tensors = {name: torch.cat(parts) for name, parts in made.items() if parts}
        write_json(counts, folder / COUNTS)
        write_tensors(tensors or {"item": torch.zeros(0, dtype=torch.int64)}, folder / _FILE, {"encoder": encoder})

    return make


def check_shard(folder: Path, encoder: str) -> None:
    """Raise `DataError` unless a finished shard's folder holds its whole file, made by the tower of hash `encoder`."""
    open_tensors(folder / _FILE, encoder)


class Features:
    """Features by the number of a crop, out of the finished shards in `made`; files are mapped into memory.

    `counts` says how many crops are of images of another size than annotated (`rescaled`), and how many were rejected, by reason.
    """

    def __init__(self, shards: Sequence[Shard], made: Path, count: int, encoder: str) -> None:
        self._open = [open_tensors(made / shard.name / _FILE, encoder) for shard in shards]
        self.counts: Counter[str] = Counter()
        for shard in shards:
            self.counts.update(json.loads((made / shard.name / COUNTS).read_bytes()))
        self._place: dict[int, tuple[int, int]] = {}
        for number, opened in enumerate(self._open):
            for row, item in enumerate(opened["item"].tolist()):
                self._place[item] = (number, row)
        self.read = np.zeros(count, dtype=bool)
        self.read[list(self._place)] = True
        if not self._place:
            reasons = ", ".join(f"{reason} {crops}" for reason, crops in self.counts.items() if crops)
            raise DataError(f"graph_encoder: none of {count} crops could be read ({reasons}); run `dvc repro curate`")

    def get(self, name: str, crops: Sequence[int]) -> Tensor:
        """`patches`, `rest` (float32) or `region` of crops, in their order, on the CPU."""
        rows = torch.stack([self._open[shard][name][row] for shard, row in map(self._place.__getitem__, crops)])
        return rows.float() if rows.is_floating_point() else rows

    @property
    def shape(self) -> tuple[int, int]:
        """Patches of a crop and width of a feature."""
        found = next(shard["patches"] for shard in self._open if len(shard["item"]))
        return found.shape[1], found.shape[2]
