"""A data set's annotations to canonical Parquet tables."""

import os
from pathlib import Path
from typing import Annotated

import typer

from sgpipe.datasets.canonicalize import canonicalize, open_data_set
from sgpipe.datasets.config import Canonicalize, Data
from sgpipe.params.load import read_params, to_builtins
from sgpipe.runs.command import run, write_metrics
from sgpipe.runs.progress import FileBars
from sgpipe.tracking.recorder import record
from stages import CANONICAL, METRICS


def main(
    workers: Annotated[int, typer.Option(min=0, help="processes for large files; 0 takes the processors, at most 4")] = 0,
) -> None:
    """Write images, objects, relations and rejects, and count what became of every record."""
    data, config = read_params(Data, Canonicalize)
    data_set = open_data_set(data)
    inputs = [*data_set.annotations(), *([Path(config.splits.file)] if config.splits.file else [])]
    sections = {"data": data, "canonicalize": config}
    with record("canonicalize", sections, inputs) as recorded:
        allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        found = canonicalize(data_set, CANONICAL, config, workers or min(allowed, 4), FileBars().show)
        write_metrics(found, METRICS / "canonicalize.json", to_builtins(sections), recorded)


if __name__ == "__main__":
    run(main)
