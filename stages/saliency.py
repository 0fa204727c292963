"""Saliency and cross-attention maps of the curated map triples, averaged over the sampling of an image each."""

from pathlib import Path
from typing import Annotated

import pyarrow as pa
import typer

from sgpipe.attention_maps.config import Maps, Saliency
from sgpipe.attention_maps.extract import Observer, Seen, map_items
from sgpipe.backbones.config import Backbone
from sgpipe.datasets.tables import PROMPTS, TRIPLES, read_table
from sgpipe.params.load import read_section
from sgpipe.runs.command import run
from sgpipe.runs.config import Compute
from stages._maps import make_maps

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def first_of_each(predicates: list[str], count: int) -> list[bool]:
    """True at the first `count` rows of each class."""
    seen: dict[str, int] = {}
    chosen = []
    for predicate in predicates:
        seen[predicate] = seen.get(predicate, 0) + 1
        chosen.append(seen[predicate] <= count)
    return chosen


@app.command()
def main(
    params: Annotated[Path, typer.Option(help="parameter file")] = Path("params.yaml"),
    curated: Annotated[Path, typer.Option(help="folder of the triples")] = Path("outputs/curated"),
    prompts: Annotated[Path, typer.Option(help="folder of the prompt cache")] = Path("outputs/prompts"),
    out: Annotated[Path, typer.Option(help="folder of the maps")] = Path("outputs/saliency"),
    metrics: Annotated[Path, typer.Option(help="metrics file")] = Path("metrics/saliency_maps.json"),
) -> None:
    """Sample an image per triple with its concepts riding along; one Parquet of maps per layer group."""
    backbone = read_section(params, "backbone", Backbone)
    compute = read_section(params, "compute", Compute)
    maps = read_section(params, "maps", Maps)
    config = read_section(params, "saliency", Saliency)
    table = read_table(curated / "map_triples.parquet", TRIPLES)
    said = read_table(prompts / "prompts.parquet", PROMPTS)
    items = map_items(table, said, [config.condition], [None], config.seed)

    def see(observer: Observer, rows: pa.Table) -> Seen:
        return observer.along_sampling(rows, config.steps)

    make_maps(
        "saliency", items, first_of_each(items["predicate"].to_pylist(), config.images), see,
        {"source": "generate", "steps": config.steps, "condition": config.condition},
        backbone=backbone, compute=compute, maps=maps, own=config, counted=config.counted,
        inputs=[curated / "map_triples.parquet", prompts], prompts=prompts, params=params, out=out, metrics=metrics,
    )  # fmt: skip


if __name__ == "__main__":
    run(app)
