"""Saliency and cross-attention maps of the real images of the map triples, noised, under true, wrong and neutral prompts."""

from pathlib import Path
from typing import Annotated

import pyarrow as pa
import typer

from sgpipe.attention_maps.config import Maps, NoisedMaps
from sgpipe.attention_maps.extract import Observer, Seen, map_items
from sgpipe.backbones.config import Backbone
from sgpipe.backbones.latent_cache import LatentCache
from sgpipe.datasets.tables import PROMPTS, TRIPLES, read_table
from sgpipe.params.load import read_section
from sgpipe.runs.command import run
from sgpipe.runs.config import Compute
from stages._maps import make_maps

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    params: Annotated[Path, typer.Option(help="parameter file")] = Path("params.yaml"),
    curated: Annotated[Path, typer.Option(help="folder of the triples")] = Path("outputs/curated"),
    prompts: Annotated[Path, typer.Option(help="folder of the prompt cache")] = Path("outputs/prompts"),
    latents: Annotated[Path, typer.Option(help="folder of the latent cache")] = Path("outputs/latents"),
    out: Annotated[Path, typer.Option(help="folder of the maps")] = Path("outputs/saliency_noised"),
    metrics: Annotated[Path, typer.Option(help="metrics file")] = Path("metrics/saliency_noised.json"),
) -> None:
    """One forward per triple, prompt and time, of its real image's latents with noise added."""
    backbone = read_section(params, "backbone", Backbone)
    compute = read_section(params, "compute", Compute)
    maps = read_section(params, "maps", Maps)
    config = read_section(params, "saliency_noised", NoisedMaps)
    cache = LatentCache(latents, backbone)
    table = cache.available(read_table(curated / "map_triples.parquet", TRIPLES))
    said = read_table(prompts / "prompts.parquet", PROMPTS)
    items = map_items(table, said, config.conditions, config.times, config.seed)

    def see(observer: Observer, rows: pa.Table) -> Seen:
        return observer.of_noised(rows, cache.latents(rows["triple_id"].to_pylist()))

    make_maps(
        "saliency_noised", items, [False] * items.num_rows, see,
        {"source": "noised", "times": list(config.times), "conditions": list(config.conditions)},
        backbone=backbone, compute=compute, maps=maps, own=config, counted=None,
        inputs=[curated / "map_triples.parquet", prompts, latents], prompts=prompts, params=params, out=out,
        metrics=metrics,
    )  # fmt: skip


if __name__ == "__main__":
    run(app)
