"""What a download shows while it runs: bytes, rate and time left."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

Meter = Callable[[int], None]
"""Told how far a task has come: bytes of one file, or files done."""


@contextmanager
def file_meters(console: Console) -> Iterator[Callable[[str, int, int | None], Meter]]:
    """Yield `meter(name, position, size)`, which adds a bar counted in bytes and returns its `Meter`."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bars:

        def meter(name: str, position: int, size: int | None) -> Meter:
            task = bars.add_task(name, total=size, completed=position)
            return lambda at: bars.update(task, completed=at)

        yield meter


@contextmanager
def count_meter(console: Console, name: str, total: int) -> Iterator[Callable[[int, int], None]]:
    """Yield `advance(files, bytes)` for one bar counted in files, which shows the bytes and their rate
    as well.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[mib]:.1f} MiB, {task.fields[rate]:.2f} MiB/s"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bars:
        task = bars.add_task(name, total=total, mib=0.0, rate=0.0)
        got = 0

        def advance(files: int, size: int) -> None:
            nonlocal got
            got += size
            elapsed = bars.tasks[0].elapsed or 0.0
            bars.update(task, advance=files, mib=got / 2**20, rate=got / 2**20 / max(elapsed, 1e-3))

        yield advance
