"""Runs the fits of a layer group: dealt over processes of a run, and on a CPU over workers of one thread each."""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import torch
from tqdm import tqdm

from sgpipe.errors import StateError
from sgpipe.probes.jobs import Bench, Result, Unit
from sgpipe.runs.parent import die_with_parent
from sgpipe.runs.processes import Processes

_bench: Bench | None = None
"""What a worker fits on; opened once."""


def kept_at(unit: Unit, folder: Path) -> Path:
    """Where a finished fit is kept."""
    return folder / f"{unit.name}.safetensors"


def is_kept(unit: Unit, folder: Path) -> bool:
    """Whether a fit is kept whole; a damaged file is removed with a warning, so that it is fitted again."""
    path = kept_at(unit, folder)
    if not path.is_file():
        return False
    try:
        Result.load(path)
    except StateError as error:
        print(f"warning: {error}; it is fitted again")
        path.unlink()
        return False
    return True


def _start_worker(open_bench: Callable[[], Bench]) -> None:
    global _bench
    die_with_parent()
    torch.set_num_threads(1)
    _bench = open_bench()


def _run_in_worker(unit: Unit, folder: Path) -> None:
    assert _bench is not None
    _bench.run(unit).save(kept_at(unit, folder))


def run_units(units: list[Unit], folder: Path, processes: Processes, open_bench: Callable[[], Bench], workers: int) -> None:
    """Run this process's fits that `folder` does not hold whole yet, every n-th one, then wait for the other processes.

    On a CPU every fit has one thread, so its bits do not depend on `workers`; a GPU takes one fit after the other. `open_bench`
    must be picklable. Raises `StateError` if a worker dies.
    """
    mine = units[processes.index :: processes.count]
    todo = [unit for unit in mine if not is_kept(unit, folder)]
    workers = min(workers if processes.device.type == "cpu" else 1, len(todo))
    with tqdm(total=len(mine), initial=len(mine) - len(todo), unit="fit", disable=not processes.is_main, dynamic_ncols=True) as bar:
        if workers > 1:
            _run_in_pool(todo, folder, open_bench, workers, bar)
        elif todo:
            threads = torch.get_num_threads()
            torch.set_num_threads(1)
            bench = open_bench()
            for unit in todo:
                bench.run(unit).save(kept_at(unit, folder))
                bar.update()
            torch.set_num_threads(threads)
    processes.wait()


def _run_in_pool(todo: list[Unit], folder: Path, open_bench: Callable[[], Bench], workers: int, bar: tqdm) -> None:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _start_worker, (open_bench,)) as pool:
        running = [pool.submit(_run_in_worker, unit, folder) for unit in todo]
        try:
            for done in as_completed(running):
                done.result()
                bar.update()
        except BrokenProcessPool:
            kept = sum(kept_at(unit, folder).is_file() for unit in todo)
            raise StateError(
                f"a process that fits probes died (out of memory?); {kept} of {len(todo)} fits stay in {folder}; lower "
                "compute.threads and run the same command again"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)
