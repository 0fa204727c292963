"""Relation probes of one layer group, with their controls and the noise-aware probe."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer

from sgpipe.attention_maps.config import Maps
from sgpipe.backbones.config import Backbone
from sgpipe.backbones.prompt_cache import PromptCache
from sgpipe.datasets.tables import TRIPLES, read_table
from sgpipe.errors import ParamsError
from sgpipe.params.load import read_section, to_builtins
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
from stages._stage import working

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def open_bench(
    triples: Path, generated: Path, noised: Path, prompts: Path, backbone: Backbone, config: Probes, device: torch.device
) -> Bench:
    """Map the files of a layer group and read the names' embeddings (mean over each name's tokens)."""
    pairs = Pairs(read_table(triples, TRIPLES))
    cache = PromptCache([prompts], backbone)
    names = sorted({name for pair in pairs.names for name in pair})
    states, mask = cache.concepts(names)
    weights = mask / mask.sum(dim=1, keepdim=True)
    means = torch.einsum("cl,cld->cd", weights, states.float())
    embeddings = dict(zip(names, means, strict=True))
    return Bench(MapSet(generated, pairs), MapSet(noised, pairs), pairs, embeddings, config, device)


@app.command()
def main(
    group: Annotated[str, typer.Argument(help="layer group, one of maps.groups")],
    params: Annotated[Path, typer.Option(help="parameter file")] = Path("params.yaml"),
    curated: Annotated[Path, typer.Option(help="folder of the triples")] = Path("outputs/curated"),
    prompts: Annotated[Path, typer.Option(help="folder of the prompt cache")] = Path("outputs/prompts"),
    generated: Annotated[Path, typer.Option(help="maps of sampled images")] = Path("outputs/saliency"),
    noised: Annotated[Path, typer.Option(help="maps of real images")] = Path("outputs/saliency_noised"),
    out: Annotated[Path, typer.Option(help="folder of all groups' probes")] = Path("outputs/probes"),
) -> None:
    """Fit every probe on every feature, with controls; killed at any point, the same command goes on."""
    config = read_section(params, "probes", Probes)
    backbone = read_section(params, "backbone", Backbone)
    maps = read_section(params, "maps", Maps)
    compute = read_section(params, "compute", Compute)
    if group not in maps.groups:
        raise ParamsError(f"group: got {group!r}; valid: {', '.join(maps.groups)} (maps.groups)")
    processes = start(compute)
    files = [generated / f"{group}.parquet", noised / f"{group}.parquet"]
    inputs = [curated / "map_triples.parquet", prompts, *files]
    opener: Callable[[], Bench] = partial(open_bench, inputs[0], files[0], files[1], prompts, backbone, config, processes.device)
    stage, plain = f"probe@{group}", {"probes": to_builtins(config), "group": group}
    settings = {**plain, "device": processes.device.type}
    with working(stage, settings, {"probes": config}, inputs, params, processes) as (state, recorded):
        run_units(units(config), state, processes, opener, torch.get_num_threads())
        if processes.is_main:
            with new_folder(out / group) as folder:
                found = write_group(opener(), group, lambda unit: Result.load(kept_at(unit, state)), folder)
                write_json({**found, "config": config_hash(plain)}, folder / TABLE, DIGITS)
            recorded.log_metrics({name: found[name] for name in ("cells", "names", "noise_aware", "trace")})


if __name__ == "__main__":
    run(app)
