"""The negative graph of every curated triple."""

from collections import Counter
from pathlib import Path
from typing import Annotated

import pyarrow.compute as pc
import typer

from sgpipe.datasets.tables import RELATIONS, TRIPLES, read_table, write_table
from sgpipe.graphs.config import Negatives
from sgpipe.graphs.negatives import negatives
from sgpipe.params.load import read_section, to_builtins
from sgpipe.runs.command import run, write_metrics
from sgpipe.tracking.run import track

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    params: Annotated[Path, typer.Option(help="parameter file")] = Path("params.yaml"),
    triples: Annotated[Path, typer.Option(help="curated triples")] = Path("outputs/curated/triples.parquet"),
    relations: Annotated[Path, typer.Option(help="canonical relations")] = Path("outputs/canonical/relations.parquet"),
    out: Annotated[Path, typer.Option(help="table of the negatives")] = Path("outputs/negatives/negatives.parquet"),
    metrics: Annotated[Path, typer.Option(help="metrics file")] = Path("metrics/negatives.json"),
) -> None:
    """Make one negative per triple and count them by kind and by what replaces what."""
    config = read_section(params, "negatives", Negatives)
    inputs = [triples, relations, *([Path(config.confusions)] if config.confusions else [])]
    with track("negatives", {"negatives": config}, inputs, params) as recorded:
        positives = read_table(triples, TRIPLES)
        columns = ["image_id", "subject", "predicate", "object"]
        held = read_table(relations, RELATIONS, columns)
        held = held.filter(pc.is_in(held["image_id"], pc.unique(positives["image_id"])))
        made = negatives(positives, held, config)
        write_table(made, out)
        pairs = Counter(
            f"{true} -> {false}"
            for true, false, kind in zip(
                positives["predicate"].to_pylist(), made["predicate"].to_pylist(), made["kind"].to_pylist(), strict=True
            )
            if kind == "replace"
        )
        kinds = Counter(made["kind"].to_pylist())
        counts = {"triples": made.num_rows, "by_kind": kinds, "replaced": pairs}
        write_metrics(counts, metrics, to_builtins(config))
        recorded.log_metrics(counts)


if __name__ == "__main__":
    run(app)
