"""What the two stages that make maps have in common: from the rows to be made to one file per layer group."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from sgpipe.attention_maps.config import Maps, NoisedMaps, Saliency
from sgpipe.attention_maps.extract import Observer, Seen, check_shard, map_maker, merge_maps
from sgpipe.attention_maps.options import MapOptions
from sgpipe.backbones.config import Backbone
from sgpipe.backbones.denoiser import Denoiser
from sgpipe.backbones.families import check_variant, family_of_backbone, read_layout
from sgpipe.backbones.prompt_cache import PromptCache
from sgpipe.backbones.source import identity, locate
from sgpipe.params.load import read_params, to_builtins
from sgpipe.runs.atomic import new_folder
from sgpipe.runs.command import write_metrics
from sgpipe.runs.config import Compute
from sgpipe.runs.processes import start
from sgpipe.runs.shards import Make, cut, run_shards
from sgpipe.runs.state import config_hash
from stages import MAP_TRIPLES_FILE, PROMPTS
from stages._stage import working


def make_maps(
    own: Saliency | NoisedMaps,
    items: pa.Table,
    see: Callable[[Observer, pa.Table], Seen],
    facts: Mapping[str, Any],
    out: Path,
    metrics: Path,
    *,
    kept: Sequence[bool],
    counted: tuple[int, ...] | None = None,
    inputs: Sequence[Path] = (),
) -> None:
    """Make the maps of `items` as `see` makes them from a batch, into `out`; killed at any point, the same command goes on.

    The stage is called as `out` is. `kept` says of which rows the sampled images are kept, `counted` which steps count.
    """
    stage = out.name
    backbone, compute, maps = read_params(Backbone, Compute, Maps)
    processes = start(compute)
    cache = PromptCache([PROMPTS], backbone)
    layout = read_layout(locate(backbone, ("transformer", "vae", "scheduler")), backbone)
    options = MapOptions(maps.groups, maps.normalisation, counted, detach=True, variant=maps.variant)
    check_variant(family_of_backbone(backbone), options.variant)
    options.resolve(layout.double_blocks, layout.single_blocks)
    layout.classifier_free(own.guidance, f"{stage}.guidance")
    grid = layout.grid(backbone.resolution) if maps.side is None else maps.side
    shards = cut("maps", items.num_rows, maps.shard_size)

    def open_maker() -> Make:
        denoiser = Denoiser.load(backbone, processes.device, compute.offload)
        observer = Observer(denoiser, cache, options, maps.concept_tokens, backbone.resolution, own.guidance)
        return map_maker(partial(see, observer), items, maps.batch_size, maps.side, kept)

    who = identity(backbone, ("transformer", "scheduler"), resolution=backbone.resolution)
    plain = {"maps": to_builtins(maps), stage: to_builtins(own), "backbone": who}
    sections = {"maps": maps, stage: own, "backbone": backbone}
    settings = {**plain, "threads": torch.get_num_threads()}
    with working(stage, settings, sections, [MAP_TRIPLES_FILE, PROMPTS, *inputs], processes) as (state, recorded):
        run_shards(shards, state, processes, open_maker, "image", partial(check_shard, groups=maps.groups))
        if processes.is_main:
            with new_folder(out) as folder:
                about = {**facts, "backbone": config_hash(who), "concept_tokens": maps.concept_tokens}
                if maps.variant != "ours":
                    about["variant"] = maps.variant
                merge_maps(shards, state, folder, options, about, (grid, grid))
            found = {
                "maps": items.num_rows,
                "by_class": dict(sorted(Counter(items["predicate"].to_pylist()).items())),
                "groups": {name: str(blocks) for name, blocks in maps.groups.items()},
                "shape": [3, grid, grid],
                "shards": len(shards),
            }
            write_metrics(found, metrics, plain, recorded)
