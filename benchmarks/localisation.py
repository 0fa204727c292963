"""What patching costs: image and text rows of every double-stream block, g⁺ into g⁻, sampled and judged, on val pairs of one noise.

Run `python -m benchmarks.localisation` after `dvc repro train_lora`; `--check` fails above ten minutes, or where the recipient's
own rows have an effect beyond ± 0.02. Time is that of the work on pairs, without loading the generator.
"""

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import typer
from msgspec.structs import replace
from tqdm import tqdm

from sgpipe.backbones.families import read_layout
from sgpipe.backbones.source import locate
from sgpipe.datasets.tables import NEGATIVES, TRIPLES, read_table
from sgpipe.evaluation.sampling_plan import read_evaluation_triples
from sgpipe.evaluation.statistics import Bootstrap
from sgpipe.localisation.figures import localisation_figures
from sgpipe.localisation.measure import Opened, Plan
from sgpipe.localisation.pairs import items_of
from sgpipe.params.blocks import LayerGroup
from sgpipe.params.show import load_all
from sgpipe.runs.atomic import DIGITS, write_json
from sgpipe.runs.processes import pick_device
from sgpipe.runs.shards import cut

SECONDS, NULL = 600.0, 0.02


def main(
    params: Annotated[Path, typer.Option(help="parameter file")] = Path("params.yaml"),
    curated: Annotated[Path, typer.Option(help="folder of the triples")] = Path("outputs/curated"),
    negatives: Annotated[Path, typer.Option(help="folder of the negatives")] = Path("outputs/negatives"),
    adapter: Annotated[Path, typer.Option(help="adapter whose graphs are the two runs")] = Path("outputs/lora/graph/adapter"),
    pairs: Annotated[int, typer.Option(min=2, help="val pairs")] = 72,
    out: Annotated[Path, typer.Option(help="metrics file")] = Path("metrics/localisation_cost.json"),
    check: Annotated[bool, typer.Option("--check", help="fail if a bar is missed")] = False,
) -> None:
    """Patch, sample, judge."""
    sections = load_all(params)
    backbone, judges, statistics = sections["backbone"], sections["judge"], sections["statistics"]
    config = replace(
        sections["localise"], adapter=str(adapter), pairs=pairs, seeds=(0,), rows=("image", "text"), contrasts=("denoising",),
        ablations=(), heads=0, blocks=LayerGroup.parse("all"),
    )  # fmt: skip
    layout = read_layout(locate(backbone, ("transformer", "vae", "scheduler")), backbone)
    plan, device = Plan.of(config, sections["maps"], layout), pick_device("auto", 0)
    cases = read_evaluation_triples(
        read_table(curated / "triples.parquet", TRIPLES), read_table(negatives / "negatives.parquet", NEGATIVES)
    )
    items = items_of(cases, config.pairs, config.seeds)
    make = Opened(backbone, plan, items, judges, device).maker()
    tables: dict[str, list[pa.Table]] = {"effects": [], "samples": []}
    began, cpu = time.perf_counter(), time.process_time()
    with TemporaryDirectory() as folder, tqdm(total=len(items) * plan.units, unit="intervention") as bar:
        for shard in cut("items", len(items) * plan.units, config.shard_size * plan.units):
            make(shard, Path(folder), bar.update)
            for name, parts in tables.items():
                parts.append(pq.read_table(Path(folder) / f"{name}.parquet"))
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    bootstrap = Bootstrap(statistics.resamples, statistics.confidence, statistics.seed)
    effects, samples = (pa.concat_tables(parts) for parts in tables.values())
    found = localisation_figures(effects, samples, {}, bootstrap)
    figures = {
        "pairs": found["pairs"],
        "blocks": len(plan.blocks),
        "rows": list(config.rows),
        "samples": samples.num_rows,
        "null_effect": found["null_effect"],
        "null_effect_largest": found["null_effect_largest"],
        "seconds": seconds,
        "cpu_seconds": cpu,
        "threads": torch.get_num_threads(),
        "device": str(device),
    }
    write_json(figures, out, DIGITS)
    print(
        f"{found['pairs']} pairs, {len(plan.blocks)} blocks: {seconds:.0f} s ({cpu:.0f} s of CPU, "
        f"{samples.num_rows} samples), null effect {found['null_effect']:.2g}, at most {found['null_effect_largest']:.2g}"
    )
    if check and (seconds > SECONDS or abs(found["null_effect_largest"]) > NULL):
        raise SystemExit(f"missed: at most {SECONDS:.0f} s and a null effect within ±{NULL}")


if __name__ == "__main__":
    typer.run(main)
