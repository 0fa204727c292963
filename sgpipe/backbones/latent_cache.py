"""Posteriors of the VAE for curated crops on disk: mean and deviation in float16, as the VAE gives them.

float16 rounds a value by at most 2⁻¹¹ of itself, less than bfloat16 weights do, and far less than the noise that the posterior's
own deviation stands for; it halves a set that is read over and over. Values are not scaled here: what the family needs to make
the transformer's latents of them is in the manifest, and applied in float32 when they are read.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from sgpipe.backbones.base import Family
from sgpipe.backbones.cache_files import open_tensors, read_manifest, shard_reader, write_manifest
from sgpipe.backbones.config import Backbone
from sgpipe.backbones.families import family_of_backbone
from sgpipe.backbones.images import COUNTS, FILTER, CropRejected, encode, read_crop
from sgpipe.backbones.rectified_flow import generator
from sgpipe.backbones.source import identity
from sgpipe.backbones.strict import write_tensors
from sgpipe.datasets.images import Box, LoadImage
from sgpipe.datasets.tables import LATENT_INDEX, LATENT_REJECTS, read_table, write_table
from sgpipe.errors import DataError, ModelError
from sgpipe.runs.atomic import link, write_json
from sgpipe.runs.shards import Make, Shard, Tick
from sgpipe.runs.state import config_hash

KIND, STAGE = "latents", "cache_latents"
_FILE, _REJECTS = "tensors.safetensors", "rejects.parquet"
_CROP = ("crop_x", "crop_y", "crop_w", "crop_h")


def latent_identity(backbone: Backbone) -> dict[str, Any]:
    """What latents of a crop depend on."""
    return identity(backbone, ("vae",), resolution=backbone.resolution, filter=FILTER)


class Crop(NamedTuple):
    """A region `(x, y, w, h)` of an image, and the triples that it stands for."""

    image: int
    box: Box
    triples: tuple[str, ...]


class Crops(tuple[Crop, ...]):
    """The different crops of a set of triples, in a fixed order."""

    __slots__ = ()

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
        return cls(Crop(*crop, tuple(sorted(found[crop]))) for crop in sorted(found))


def latent_maker(family: Family, vae: Any, load: LoadImage, crops: Crops, resolution: int, batch_size: int, encoder: str) -> Make:
    """What fills a shard: `item`, `mean` and `std` of every crop that can be read, and the reasons of the others.

    `load` gives an image or raises `DataError`.
    """

    def make(shard: Shard, folder: Path, tick: Tick) -> None:
        items: list[int] = []
        posteriors: list[tuple[Tensor, Tensor]] = []
        rescaled = 0
        rejects: list[dict[str, Any]] = []
        for batch in shard.batches(batch_size):
            pixels: list[NDArray[np.uint8]] = []
            for item, crop in enumerate(crops[batch], batch.start):
                try:
                    made, scaled = read_crop(load, crop.image, crop.box, resolution)
                except CropRejected as error:
                    rows = [(name, crop.image, error.reason, str(error)) for name in crop.triples]
                    rejects += [dict(zip(LATENT_REJECTS.names, row, strict=True)) for row in rows]
                    continue
                pixels.append(made)
                items.append(item)
                rescaled += scaled
            if pixels:
                mean, std = (values.half() for values in encode(family, vae, pixels))
                posteriors.append((mean, std))
                if not torch.isfinite(mean).all():
                    raise ModelError("vae: its latents exceed the range of float16; the checkpoint is damaged")
            tick(batch.stop - batch.start)
        tensors = {"item": torch.tensor(items, dtype=torch.int64)}
        tensors |= {name: torch.cat(parts) for name, parts in zip(("mean", "std"), zip(*posteriors, strict=True), strict=False)}
        write_tensors(tensors, folder / _FILE, {"encoder": encoder})
        write_table(pa.Table.from_pylist(rejects, schema=LATENT_REJECTS), folder / _REJECTS)
        write_json({"rescaled": rescaled}, folder / COUNTS)

    return make


def merge_latents(
    shards: Sequence[Shard], made: Path, out: Path, crops: Crops, who: Mapping[str, Any], statistics: Mapping[str, Any]
) -> dict[str, Any]:
    """Make the cache `out` of the finished shards in `made`, whose encoder is `who` and has these `Family.statistics`.

    Returns crops read (`rescaled`: of images of another size than annotated) and triples kept, and triples rejected by reason.
    Raises `DataError` if no crop could be read.
    """
    index: list[dict[str, Any]] = []
    kept = rescaled = 0
    for shard in shards:
        rescaled += json.loads((made / shard.name / COUNTS).read_bytes())["rescaled"]
        items = open_tensors(made / shard.name / _FILE, config_hash(who))["item"].tolist()
        kept += len(items)
        if items:
            link(made / shard.name / _FILE, out / f"{shard.name}.safetensors")
        for row, item in enumerate(items):
            image, box, triples = crops[item]
            index += [dict(zip(LATENT_INDEX.names, (name, image, *box, shard.name, row), strict=True)) for name in triples]
    rejects = pa.concat_tables(
        [LATENT_REJECTS.empty_table()] + [read_table(made / shard.name / _REJECTS, LATENT_REJECTS) for shard in shards]
    )
    if kept == 0:
        raise DataError(
            f"none of {len(crops)} crops could be read"
            + (f"; the first: {rejects['detail'][0]}" if rejects.num_rows else "; run `dvc repro curate`")
        )
    write_table(pa.Table.from_pylist(index, schema=LATENT_INDEX), out / "index.parquet")
    write_table(rejects, out / _REJECTS)
    write_manifest(out, KIND, who, **statistics)
    reasons = Counter(rejects["reason"].to_pylist())
    return {
        "crops": {"read": kept, "all": len(crops), "rescaled": rescaled},
        "triples": {"kept": len(index), "rejected": rejects.num_rows},
        "rejected_by_reason": dict(sorted(reasons.items())),
    }


class LatentCache:
    """Latents by triple id; shards are mapped into memory and opened on first use.

    Raises `DataError` if the folder is missing or was made by another VAE, resolution or precision than `backbone` says.
    """

    def __init__(self, folder: Path, backbone: Backbone) -> None:
        who = latent_identity(backbone)
        statistics = read_manifest(folder, KIND, who, STAGE)
        self._folder, self._shard = folder, shard_reader(who)
        self._normalised = partial(family_of_backbone(backbone).normalised, statistics)
        index = read_table(folder / "index.parquet", LATENT_INDEX).to_pylist()
        self._places = {row["triple_id"]: (row["shard"], row["row"]) for row in index}
        self._crops = {row["triple_id"]: (row["image_id"], *(row[name] for name in _CROP)) for row in index}
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
        return self._normalised(mean)

    def _rows(self, name: str) -> tuple[Tensor, Tensor]:
        if name not in self._places:
            why = f"was rejected ({self._rejects[name]})" if name in self._rejects else "is not cached"
            raise DataError(f"{self._folder}: triple {name} {why}; take triples from `available`")
        shard, row = self._places[name]
        tensors = self._shard(self._folder / f"{shard}.safetensors")
        return tensors["mean"][row], tensors["std"][row]
