"""Which maps are made, one row per image, prompt and time; and maps of a batch of rows, along sampling or of noised real images."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from sgpipe.attention_maps.config import Pooling
from sgpipe.attention_maps.files import map_bytes, map_table, write_maps
from sgpipe.attention_maps.options import MapOptions, concept_embeddings
from sgpipe.attention_maps.scores import GroupMaps, resize_maps
from sgpipe.attention_maps.stream import concept_stream
from sgpipe.backbones.denoiser import Denoiser
from sgpipe.backbones.prompt_cache import PromptCache
from sgpipe.backbones.rectified_flow import interpolate, noise
from sgpipe.datasets.tables import MAP_ITEMS
from sgpipe.errors import DataError
from sgpipe.graphs.prompts import concepts_told
from sgpipe.runs.hashing import hashed
from sgpipe.runs.shards import Make, Shard, Tick

ITEMS = pa.schema([*MAP_ITEMS, ("prompt", pa.string()), ("concepts", pa.list_(pa.string(), 3)), ("seed", pa.int64())])


def map_items(
    triples: pa.Table, prompts: pa.Table, conditions: Collection[str], times: Collection[float | None], seed: int
) -> pa.Table:
    """Rows `ITEMS` for all triples × conditions × times, in this order.

    The three concepts follow the prompt (`concepts_told`). The seed of an image's noise is a hash of its ids and the
    same in all its rows. Raises `DataError` for a prompt that was not cached.
    """
    asked: Mapping[tuple[str, str], tuple[str | None, str]] = {
        (triple, condition): (predicate, prompt)
        for triple, condition, predicate, prompt in zip(
            *(prompts[name].to_pylist() for name in ("triple_id", "condition", "predicate", "prompt")), strict=True
        )
    }
    seeds = hashed(seed, "maps", *(triples[name].to_numpy() for name in ("image_id", "relationship_id")))
    rows: list[dict[str, object]] = []
    columns = (triples[name].to_pylist() for name in ("triple_id", "predicate", "concepts"))
    for triple, predicate, said, own in zip(*columns, (seeds >> np.uint64(1)).tolist(), strict=True):
        for condition in conditions:
            if (triple, condition) not in asked:
                raise DataError(
                    f"triple {triple}: its {condition} prompt is not cached; add {condition} to cache_prompts.conditions"
                )
            named, prompt = asked[triple, condition]
            rows += [
                {
                    "triple_id": triple, "predicate": predicate, "condition": condition, "prompt_predicate": named,
                    "t": t, "prompt": prompt, "concepts": concepts_told(said, named), "seed": own,
                }
                for t in times
            ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=ITEMS)


SAMPLES = "samples"
"""Name of the file that holds the latents of images kept for the contact sheets: `triple_id`, `latents` (float16 `[C, h, w]`)."""
GroupsOfMaps = Mapping[str, GroupMaps]


@dataclass(frozen=True)
class Seen:
    """Maps of a batch by group, and the latents `[B, C, h, w]` of the images they were made along (None for real ones)."""

    maps: GroupsOfMaps
    latents: Tensor | None = None


@dataclass(frozen=True)
class Observer:
    """A transformer in which concepts ride along, and the encodings that it needs."""

    denoiser: Denoiser
    cache: PromptCache
    options: MapOptions
    pooling: Pooling
    resolution: int
    guidance: float | None = None

    def concepts(self, items: pa.Table) -> Tensor:
        """Concept vectors `[B, K, d_T5]` of rows of `ITEMS`, on the device."""
        told = items["concepts"].to_pylist()
        rows = [concept_embeddings(*self.cache.concepts(said, self.options.joined), self.pooling) for said in told]
        return torch.stack(rows).to(self.denoiser.device, self.denoiser.dtype)

    def along_sampling(self, items: pa.Table, steps: int) -> Seen:
        """Means over the counted steps of sampling each row's prompt from the noise of its seed.

        Classifier-free guidance leads the sampling; maps are of the forwards under the prompt alone.
        """
        grid = self.denoiser.layout.grid(self.resolution)
        prompts, seeds = self.cache.get(items["prompt"].to_pylist()), items["seed"].to_pylist()
        empty = self.cache.get([""]) if self.denoiser.layout.classifier_free(self.guidance) else None
        with concept_stream(self.denoiser.transformer, self.concepts(items), (grid, grid), self.options) as stream:
            latents = self.denoiser.sample(
                prompts, seeds, self.resolution, steps, self.guidance, unconditional=empty, aside=stream.paused
            )
        return Seen(stream.maps(), latents)

    @torch.no_grad()
    def of_noised(self, items: pa.Table, clean: Tensor) -> Seen:
        """Maps in one forward of z_t = (1 − t) z_0 + t ε, for latents z_0 `[B, C, h, w]` and each row's t and seed."""
        grid = self.denoiser.layout.grid(self.resolution)
        t = torch.tensor(items["t"].to_pylist())
        z_t = interpolate(clean, noise(items["seed"].to_pylist(), tuple(clean.shape[1:])), t)
        prompts = self.cache.get(items["prompt"].to_pylist())
        with concept_stream(self.denoiser.transformer, self.concepts(items), (grid, grid), self.options) as stream:
            self.denoiser.velocity(z_t, t, prompts, self.guidance)
        return Seen(stream.maps())


def map_maker(see: Callable[[pa.Table], Seen], items: pa.Table, batch_size: int, side: int | None, kept: Sequence[bool]) -> Make:
    """What fills a shard: `<group>.parquet` with the maps of its rows, resized to `side`, and `samples.parquet`.

    `kept` tells for every row of `items` whether the latents of its image are kept.
    """

    def make(shard: Shard, folder: Path, tick: Tick) -> None:
        tables: dict[str, list[pa.Table]] = {}
        samples: list[pa.Table] = []
        for batch in shard.batches(batch_size):
            rows = items.slice(batch.start, batch.stop - batch.start)
            seen = see(rows)
            for group, maps in seen.maps.items():
                sized = [m if side is None else resize_maps(m, side) for m in maps]
                tables.setdefault(group, []).append(map_table(rows, *sized))
            if seen.latents is not None and any(kept[batch]):
                chosen = pa.array(kept[batch])
                latents = seen.latents[torch.tensor(kept[batch])]
                samples.append(pa.table({"triple_id": rows["triple_id"].filter(chosen), "latents": map_bytes(latents)}))
            tick(batch.stop - batch.start)
        for group, parts in tables.items():
            pq.write_table(pa.concat_tables(parts), folder / f"{group}.parquet", compression="none", use_dictionary=False)
        if samples:
            pq.write_table(pa.concat_tables(samples), folder / f"{SAMPLES}.parquet", compression="none")

    return make


def check_shard(folder: Path, groups: Iterable[str]) -> None:
    """Raise `DataError` unless a finished shard's folder holds a whole file for each group, and whole samples if there are any."""
    samples = folder / f"{SAMPLES}.parquet"
    paths = [folder / f"{group}.parquet" for group in groups]
    for path in [*paths, samples] if samples.exists() else paths:
        try:
            pq.read_metadata(path)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path}: not a whole file ({error})") from error


def merge_maps(
    shards: Sequence[Shard], made: Path, out: Path, options: MapOptions, facts: Mapping[str, Any], grid: tuple[int, int]
) -> None:
    """Make `<group>.parquet` in `out` of the finished shards in `made`, a row group each, and `samples.parquet` if there are any.

    `facts` go into the metadata beside the group's name, its blocks, the maps' shape `[K, H, W]` and their normalisation.
    """
    for group, blocks in options.groups.items():
        tables = (pq.read_table(made / shard.name / f"{group}.parquet") for shard in shards)
        about = {
            **facts, "group": group, "blocks": str(blocks), "shape": [3, *grid], "normalisation": options.normalisation,
        }  # fmt: skip
        write_maps(tables, out / f"{group}.parquet", about)
    kept = [path for shard in shards if (path := made / shard.name / f"{SAMPLES}.parquet").is_file()]
    if kept:
        table = pa.concat_tables([pq.read_table(path) for path in kept]).combine_chunks()
        pq.write_table(table, out / f"{SAMPLES}.parquet", compression="none", use_dictionary=False)
