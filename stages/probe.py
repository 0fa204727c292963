"""Relation probes of one layer group, with their controls and the noise-aware probe."""

from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer

from sgpipe.attention_maps.config import Maps
from sgpipe.attention_maps.options import concept_embeddings
from sgpipe.backbones.config import Backbone
from sgpipe.backbones.prompt_cache import PromptCache
from sgpipe.datasets.tables import TRIPLES, read_table
from sgpipe.errors import ParamsError
from sgpipe.params.load import read_params, to_builtins
from sgpipe.probes.config import Probes
from sgpipe.probes.data import MapSet, Pairs
from sgpipe.probes.group import write_group
from sgpipe.probes.jobs import Bench, Result, units
from sgpipe.probes.pool import kept_at, run_units
from sgpipe.probes.table import TABLE
from sgpipe.runs.atomic import DIGITS, new_folder, write_json
from sgpipe.runs.command import run
from sgpipe.runs.config import Compute
from sgpipe.runs.processes import start
from sgpipe.runs.state import config_hash
from stages import MAP_TRIPLES_FILE, PROBES, PROMPTS, SALIENCY, SALIENCY_NOISED
from stages._stage import working


def open_bench(
    triples: Path, generated: Path, noised: Path, prompts: Path, backbone: Backbone, config: Probes, device: torch.device
) -> Bench:
    """Map the files of a layer group and read the names' embeddings (mean over each name's tokens)."""
    pairs = Pairs(read_table(triples, TRIPLES))
    names = sorted({name for pair in pairs.names for name in pair})
    states, mask = PromptCache([prompts], backbone).concepts(names)
    embeddings = dict(zip(names, concept_embeddings(states.float(), mask, "mean"), strict=True))
    return Bench(MapSet(generated, pairs), MapSet(noised, pairs), pairs, embeddings, config, device)


def main(group: Annotated[str, typer.Argument(help="layer group, one of maps.groups")]) -> None:
    """Fit every probe on every feature, with controls; killed at any point, the same command goes on."""
    config, backbone, maps, compute = read_params(Probes, Backbone, Maps, Compute)
    if group not in maps.groups:
        raise ParamsError(f"group: got {group!r}; valid: {', '.join(maps.groups)} (maps.groups)")
    processes = start(compute)
    files = SALIENCY / f"{group}.parquet", SALIENCY_NOISED / f"{group}.parquet"
    opener = partial(open_bench, MAP_TRIPLES_FILE, *files, PROMPTS, backbone, config, processes.device)
    plain = {"probes": to_builtins(config), "group": group}
    settings, inputs = {**plain, "device": processes.device.type}, [MAP_TRIPLES_FILE, PROMPTS, *files]
    with working(f"probe@{group}", settings, {"probes": config}, inputs, processes) as (state, recorded):
        run_units(units(config), state, processes, opener, torch.get_num_threads())
        if processes.is_main:
            with new_folder(PROBES / group) as folder:
                found = write_group(opener(), group, lambda unit: Result.load(kept_at(unit, state)), folder)
                write_json({**found, "config": config_hash(plain)}, folder / TABLE, DIGITS)
            recorded.log_metrics({name: found[name] for name in ("cells", "names", "noise_aware", "trace")})


if __name__ == "__main__":
    run(main)
