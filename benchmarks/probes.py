"""What fitting the probes costs.

- `cells`: every fit of every layer group on the maps in `outputs/`, with the parameters of params.yaml: seconds, and by probe.
- `loader`: the share of fitting time spent waiting for maps, at the predecessor's size: a file of 700 maps of each of 24 classes,
  3 concepts at 32², read by WRN-28-2 on [saliency, cross, saliency · cross]; on the CPU, and on the GPU where there is one.

Run `python -m benchmarks.probes`; `--check` fails above 6 minutes for all cells or at 5 % of the time waiting.
"""

import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import torch
import typer

from sgpipe.attention_maps.config import Maps
from sgpipe.attention_maps.files import map_table, write_maps
from sgpipe.backbones.config import Backbone
from sgpipe.datasets.tables import MAP_ITEMS
from sgpipe.params.load import read_section
from sgpipe.probes.config import Fitting, Probes
from sgpipe.probes.data import MapSet, MapSource, Pairs
from sgpipe.probes.fit import fit, scale
from sgpipe.probes.jobs import Result, units
from sgpipe.probes.pool import kept_at, run_units
from sgpipe.probes.probe import Probe, ProbeConfig
from sgpipe.relations.predicates import PREDICATES
from sgpipe.runs.atomic import DIGITS, write_json
from sgpipe.runs.processes import Processes
from stages.probe import open_bench

SECONDS, WAITING = 360.0, 0.05
SHAPE, SHARD = (3, 32, 32), 256


def measure_cells(params: Path, outputs: Path, workers: int) -> dict[str, Any]:
    """Wall seconds of all fits of all layer groups, start of the workers included, and processor seconds by kind of fit."""
    config = read_section(params, "probes", Probes)
    backbone = read_section(params, "backbone", Backbone)
    groups = list(read_section(params, "maps", Maps).groups)
    device = torch.device("cpu")
    spent: dict[str, float] = defaultdict(float)
    began = time.perf_counter()
    for group in groups:
        opener = partial(
            open_bench, outputs / "curated/map_triples.parquet", outputs / f"saliency/{group}.parquet",
            outputs / f"saliency_noised/{group}.parquet", outputs / "prompts", backbone, config, device,
        )  # fmt: skip
        with TemporaryDirectory() as folder:
            run_units(units(config), Path(folder), Processes(0, 1, device), opener, workers)
            for unit in units(config):
                kind = f"{unit.what}_{unit.kind}" if unit.what in ("cell", "shuffled") else unit.what
                spent[kind] += Result.load(kept_at(unit, Path(folder))).facts["seconds"]
    return {
        "seconds": time.perf_counter() - began,
        "fits": len(groups) * len(units(config)),
        "cells": len(groups) * len(config.epochs) * len(config.features),
        "seconds_of": dict(spent),
        "workers": workers,
    }


def write_random_maps(path: Path, per_class: int) -> Pairs:
    """A file of random maps at full size, and their triples."""
    count, draw = per_class * len(PREDICATES), torch.Generator().manual_seed(0)

    def tables() -> Iterator[pa.Table]:
        for start in range(0, count, SHARD):
            rows = [
                {"triple_id": str(i), "predicate": PREDICATES[i % 24], "condition": "relational"}
                for i in range(start, min(start + SHARD, count))
            ]
            maps = torch.randn(2, len(rows), *SHAPE, generator=draw)
            yield map_table(pa.Table.from_pylist(rows, schema=MAP_ITEMS), *maps)

    write_maps(tables(), path, {"shape": SHAPE})
    triples = [
        {"triple_id": str(i), "image_id": i, "subject": f"s{i % 97}", "predicate": PREDICATES[i % 24], "object": f"o{i % 89}"}
        for i in range(count)
    ]
    return Pairs(pa.Table.from_pylist(triples))


def measure_loader(per_class: int, rows: int, epochs: int, device: str) -> dict[str, Any]:
    """Share of the time of a fit of WRN-28-2 in which it waits for maps, over `rows` training rows from all over the file."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "maps.parquet"
        maps = MapSet(path, write_random_maps(path, per_class))
        source = MapSource(maps, "triple")
        chosen = np.random.default_rng(0).permutation(len(maps))[: rows + 128]
        train, val = chosen[:rows], chosen[rows:]
        channels = scale(source, train)

        def build() -> Probe:
            probe = Probe(ProbeConfig("wrn", "triple", maps.classes, maps.shape, width=2))
            probe.set_scale(*channels)
            return probe

        clock = fit(build, source, maps.labels, train, val, epochs, 0.01, Fitting(patience=epochs), 0, torch.device(device)).clock
    return {
        "waiting_share": clock.waiting / clock.total,
        "maps_per_second": epochs * (rows + len(val)) / clock.total,
        "maps": len(maps),
        "rows": rows,
        "epochs": epochs,
    }


def main(
    params: Annotated[Path, typer.Option(help="parameter file")] = Path("params.yaml"),
    outputs: Annotated[Path, typer.Option(help="folder of the pipeline's outputs")] = Path("outputs"),
    per_class: Annotated[int, typer.Option(min=1, help="maps of each class in the file that is read")] = 700,
    rows: Annotated[int, typer.Option(min=2, help="training rows of the CPU's fit")] = 512,
    cuda: Annotated[bool, typer.Option(help="measure on the GPU, where there is one")] = True,
    out: Annotated[Path, typer.Option(help="metrics file")] = Path("metrics/probes_cost.json"),
    check: Annotated[bool, typer.Option("--check", help="fail if a bar is missed")] = False,
) -> None:
    """Measure, print, write."""
    cells = measure_cells(params, outputs, torch.get_num_threads())
    print(
        f"{cells['fits']} fits for {cells['cells']} cells and their controls, {cells['workers']} workers: {cells['seconds']:.0f} s"
    )
    loader = {"cpu": measure_loader(per_class, rows, 1, "cpu")}
    if cuda and torch.cuda.is_available():
        loader["cuda"] = measure_loader(per_class, 20 * per_class, 3, "cuda")
        loader["cuda"]["device"] = torch.cuda.get_device_name()
    else:
        print("GPU: not run" + (", none was found" if cuda else ""))
    for device, found in loader.items():
        print(
            f"{device}: WRN-28-2 on {found['maps']:,} maps of {SHAPE[1]}²: {found['maps_per_second']:.0f} maps/s, "
            f"{found['waiting_share']:.2%} of the time waiting for maps"
        )
    write_json({"cells": cells, "loader": loader}, out, DIGITS)
    if check and (cells["seconds"] > SECONDS or max(of["waiting_share"] for of in loader.values()) >= WAITING):
        print(f"error: the bars are {SECONDS:.0f} s for all cells and {WAITING:.0%} of the time waiting", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    typer.run(main)
