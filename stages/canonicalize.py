"""A data set's annotations to canonical Parquet tables."""

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from sgpipe.datasets.canonicalize import canonicalize, open_data_set
from sgpipe.datasets.config import Canonicalize, Data
from sgpipe.params.load import read_section, to_builtins
from sgpipe.runs.command import run, write_metrics
from sgpipe.tracking.run import track

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    params: Annotated[Path, typer.Option(help="parameter file")] = Path("params.yaml"),
    out: Annotated[Path, typer.Option(help="folder of the tables")] = Path("outputs/canonical"),
    metrics: Annotated[Path, typer.Option(help="metrics file")] = Path("metrics/canonicalize.json"),
    workers: Annotated[int, typer.Option(min=0, help="processes for large files; 0 takes the processors, at most 4")] = 0,
) -> None:
    """Write images, objects, relations and rejects, and count what became of every record."""
    data = read_section(params, "data", Data)
    config = read_section(params, "canonicalize", Canonicalize)
    data_set = open_data_set(data)
    inputs = data_set.annotations()
    inputs += [Path(config.splits.file)] if config.splits.file else []
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"), TimeElapsedColumn())
    with (
        track("canonicalize", {"data": data, "canonicalize": config}, inputs, params) as recorded,
        Progress(*columns, console=Console(stderr=True)) as bars,
    ):
        tasks: dict[Path, TaskID] = {}

        def show(path: Path, done: int) -> None:
            if path not in tasks:
                tasks[path] = bars.add_task(path.name, total=path.stat().st_size)
            bars.update(tasks[path], completed=done)

        allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        count = workers or min(allowed, 4)
        found = canonicalize(data_set, out, config, count, show)
        write_metrics(found, metrics, {"data": to_builtins(data), "canonicalize": to_builtins(config)})
        recorded.log_metrics(found)


if __name__ == "__main__":
    run(app)
