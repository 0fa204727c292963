"""Balanced train, val and map triples from the canonical tables."""

from pathlib import Path
from typing import Annotated

import typer

from sgpipe.datasets.tables import IMAGES, RELATIONS, read_table, write_table
from sgpipe.graphs.config import Curate
from sgpipe.graphs.curate import curate
from sgpipe.params.load import read_section, to_builtins
from sgpipe.runs.command import run, write_metrics
from sgpipe.tracking.run import track

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    params: Annotated[Path, typer.Option(help="parameter file")] = Path("params.yaml"),
    canonical: Annotated[Path, typer.Option(help="folder of the canonical tables")] = Path("outputs/canonical"),
    out: Annotated[Path, typer.Option(help="folder of the triples")] = Path("outputs/curated"),
    metrics: Annotated[Path, typer.Option(help="metrics file")] = Path("metrics/curate.json"),
) -> None:
    """Choose the triples, build their prompts and crops, and count them by class."""
    config = read_section(params, "curate", Curate)
    inputs = [canonical / "relations.parquet", canonical / "images.parquet"]
    with track("curate", {"curate": config}, inputs, params) as recorded:
        curated = curate(read_table(inputs[0], RELATIONS), read_table(inputs[1], IMAGES), config)
        write_table(curated.triples, out / "triples.parquet")
        write_table(curated.map_triples, out / "map_triples.parquet")
        write_metrics(curated.metrics, metrics, to_builtins(config))
        recorded.log_metrics(curated.metrics)


if __name__ == "__main__":
    run(app)
