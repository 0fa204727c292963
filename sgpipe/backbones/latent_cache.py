"""Posteriors of the VAE for curated crops on disk: mean and deviation in float16, as the VAE gives them.

float16 rounds a value by at most 2⁻¹¹ of itself, less than bfloat16 weights do, and far less than the noise that the posterior's
own deviation stands for; it halves a set that is read over and over. Values are not scaled here, so the transformer's
scaling (in the manifest) is applied in float32 when they are read.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from sgpipe.backbones.cache_files import open_tensors, read_manifest, write_manifest
from sgpipe.backbones.config import Backbone
from sgpipe.backbones.images import COUNTS, FILTER, CropRejected, Scaling, encode, read_crop
from sgpipe.backbones.rectified_flow import generator
from sgpipe.backbones.source import identity
from sgpipe.backbones.strict import write_tensors
from sgpipe.datasets.images import Box, LoadImage
from sgpipe.datasets.tables import LATENT_INDEX, LATENT_REJECTS, read_table, write_table
from sgpipe.errors import DataError, ModelError
from sgpipe.runs.atomic import write_json
from sgpipe.runs.shards import Make, Shard, Tick, link
from sgpipe.runs.state import config_hash

KIND, STAGE = "latents", "cache_latents"
_FILE, _REJECTS = "tensors.safetensors", "rejects.parquet"
_CROP = ("crop_x", "crop_y", "crop_w", "crop_h")


def latent_identity(backbone: Backbone) -> dict[str, Any]:
    """What latents of a crop depend on."""
    return identity(backbone, ("vae",), resolution=backbone.resolution, filter=FILTER)


@dataclass(frozen=True)
class Crops:
    """The different crops of a set of triples, in a fixed order, and the triples that each one stands for."""

    image: tuple[int, ...]
    box: tuple[Box, ...]
    triples: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, table: pa.Table) -> Self:
        """From a table with `triple_id`, `image_id` and `crop_*`. Raises `DataError` if one id has two crops."""
        found: dict[tuple[int, Box], set[str]] = {}
        seen: dict[str, tuple[int, Box]] = {}
        columns = (table[name].to_pylist() for name in ("triple_id", "image_id", *_CROP))
        for name, image, *box in zip(*columns, strict=True):
            crop = (image, (box[0], box[1], box[2], box[3]))
            if seen.setdefault(name, crop) != crop:
                raise DataError(f"triple {name} has two different crops; run `dvc repro curate`")
            found.setdefault(crop, set()).add(name)
        order = sorted(found)
        return cls(
            tuple(image for image, _ in order), tuple(box for _, box in order), tuple(tuple(sorted(found[crop])) for crop in order)
        )

    def __len__(self) -> int:
        return len(self.image)


def latent_maker(vae: Any, load: LoadImage, crops: Crops, resolution: int, batch_size: int, encoder: str) -> Make:
    """What fills a shard: `item`, `mean` and `std` of every crop that can be read, and the reasons of the others.

    `load` gives an image or raises `DataError`.
    """

    def make(shard: Shard, folder: Path, tick: Tick) -> None:
        items: list[int] = []
        means: list[Tensor] = []
        deviations: list[Tensor] = []
        rescaled = 0
        rejects: dict[str, list[Any]] = {name: [] for name in LATENT_REJECTS.names}
        for batch in shard.batches(batch_size):
            pixels: list[NDArray[np.uint8]] = []
            for item in range(batch.start, batch.stop):
                try:
                    crop, scaled = read_crop(load, crops.image[item], crops.box[item], resolution)
                except CropRejected as error:
                    for name in crops.triples[item]:
                        row = (name, crops.image[item], error.reason, str(error))
                        for column, value in zip(LATENT_REJECTS.names, row, strict=True):
                            rejects[column].append(value)
                    continue
                pixels.append(crop)
                items.append(item)
                rescaled += scaled
            if pixels:
                mean, std = encode(vae, pixels)
                means.append(mean.half())
                deviations.append(std.half())
                if not torch.isfinite(means[-1]).all():
                    raise ModelError("vae: its latents exceed the range of float16; the checkpoint is damaged")
            tick(batch.stop - batch.start)
        tensors = {"item": torch.tensor(items, dtype=torch.int64)}
        if items:
            tensors |= {"mean": torch.cat(means), "std": torch.cat(deviations)}
        write_tensors(tensors, folder / _FILE, {"encoder": encoder})
        write_table(pa.table(rejects, schema=LATENT_REJECTS), folder / _REJECTS)
        write_json({"rescaled": rescaled}, folder / COUNTS)

    return make


def merge_latents(
    shards: Sequence[Shard], made: Path, out: Path, crops: Crops, who: Mapping[str, Any], scaling: Scaling
) -> dict[str, Any]:
    """Make the cache `out` of the finished shards in `made`, whose encoder is `who`.

    Returns crops read (`rescaled`: of images of another size than annotated) and triples kept, and triples rejected by reason.

    Raises `DataError` if no crop could be read.
    """
    rows: dict[str, list[Any]] = {name: [] for name in LATENT_INDEX.names}
    kept = rescaled = 0
    for shard in shards:
        rescaled += json.loads((made / shard.name / COUNTS).read_bytes())["rescaled"]
        items = open_tensors(made / shard.name / _FILE, config_hash(who))["item"].tolist()
        kept += len(items)
        if items:
            link(made / shard.name / _FILE, out / f"{shard.name}.safetensors")
        for row, item in enumerate(items):
            for name in crops.triples[item]:
                values = (name, crops.image[item], *crops.box[item], shard.name, row)
                for column, value in zip(LATENT_INDEX.names, values, strict=True):
                    rows[column].append(value)
    rejects = pa.concat_tables(
        [LATENT_REJECTS.empty_table()] + [read_table(made / shard.name / _REJECTS, LATENT_REJECTS) for shard in shards]
    )
    if kept == 0:
        raise DataError(
            f"none of {len(crops)} crops could be read"
            + (f"; the first: {rejects['detail'][0]}" if rejects.num_rows else "; run `dvc repro curate`")
        )
    write_table(pa.table(rows, schema=LATENT_INDEX), out / "index.parquet")
    write_table(rejects, out / _REJECTS)
    write_manifest(out, KIND, who, scale=scaling.scale, shift=scaling.shift)
    reasons = rejects["reason"].to_pylist()
    return {
        "crops": {"read": kept, "all": len(crops), "rescaled": rescaled},
        "triples": {"kept": len(rows["triple_id"]), "rejected": len(reasons)},
        "rejected_by_reason": {reason: reasons.count(reason) for reason in sorted(set(reasons))},
    }


class LatentCache:
    """Latents by triple id; shards are mapped into memory and opened on first use.

    Raises `DataError` if the folder is missing or was made by another VAE, resolution or precision than `backbone` says.
    """

    def __init__(self, folder: Path, backbone: Backbone) -> None:
        who = latent_identity(backbone)
        manifest = read_manifest(folder, KIND, who, STAGE)
        self._folder, self._encoder = folder, config_hash(who)
        self._scaling = Scaling(manifest["scale"], manifest["shift"])
        self._open: dict[str, dict[str, Tensor]] = {}
        index = read_table(folder / "index.parquet", LATENT_INDEX)
        names, shards, rows = (index[name].to_pylist() for name in ("triple_id", "shard", "row"))
        self._places = dict(zip(names, zip(shards, rows, strict=True), strict=True))
        columns = (index[name].to_pylist() for name in ("image_id", *_CROP))
        self._crops = dict(zip(names, zip(*columns, strict=True), strict=True))
        rejects = read_table(folder / _REJECTS, LATENT_REJECTS)
        self._rejects = dict(zip(rejects["triple_id"].to_pylist(), rejects["reason"].to_pylist(), strict=True))

    def available(self, triples: pa.Table) -> pa.Table:
        """The rows of curated triples whose latents are there, in their order; rejected ones fall out.

        Raises `DataError` for a triple that was never cached, or whose crop is another one now.
        """
        names = triples["triple_id"].to_pylist()
        crops = zip(*(triples[name].to_pylist() for name in ("image_id", *_CROP)), strict=True)
        for name, crop in zip(names, crops, strict=True):
            if name not in self._rejects and self._crops.get(name) != crop:
                what = "has another crop now" if name in self._crops else "is not cached"
                raise DataError(f"{self._folder}: triple {name} {what}; run `dvc repro {STAGE}`")
        return triples.filter(pa.array([name in self._places for name in names], pa.bool_()))

    def get(self, triple_ids: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Mean and deviation `[B, C, h, w]` of the VAE's posterior, float16, unscaled, in the order asked for."""
        pairs = [self._rows(name) for name in triple_ids]
        return torch.stack([mean for mean, _ in pairs]), torch.stack([std for _, std in pairs])

    def latents(self, triple_ids: Sequence[str], seed: int | None = None) -> Tensor:
        """z_0 `[B, C, h, w]`, float32, as the transformer sees it: the posterior's mean, or with a seed a draw from it.

        The draw of a triple depends on the seed and its id alone.
        """
        mean, std = (values.float() for values in self.get(triple_ids))
        if seed is not None:
            draws = [torch.randn(mean.shape[1:], generator=generator(seed, name)) for name in triple_ids]
            mean = mean + std * torch.stack(draws)
        return self._scaling(mean)

    def _rows(self, name: str) -> tuple[Tensor, Tensor]:
        if name not in self._places:
            why = f"was rejected ({self._rejects[name]})" if name in self._rejects else "is not cached"
            raise DataError(f"{self._folder}: triple {name} {why}; take triples from `available`")
        shard, row = self._places[name]
        if shard not in self._open:
            self._open[shard] = open_tensors(self._folder / f"{shard}.safetensors", self._encoder)
        tensors = self._open[shard]
        return tensors["mean"][row], tensors["std"][row]
