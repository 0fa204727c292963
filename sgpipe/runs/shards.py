"""Work in shards of fixed composition: dealt over processes, resumed after a kill, merged by one process.

A shard's files are made in a folder of the stage's state and appear there whole or not at all. What a shard holds and the
order in which shards are merged depend on the work alone, so the output's bytes do not depend on the number of processes or
on interruptions (at equal threads per process and on the same kind of device).
"""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from sgpipe.errors import SgpipeError, StateError
from sgpipe.runs.atomic import fsync
from sgpipe.runs.processes import Processes
from sgpipe.runs.state import stage_state, state_folder

Tick = Callable[[int], object]


class Shard(NamedTuple):
    """Items `start:stop` of one kind of work; `name` is unique within the stage."""

    name: str
    start: int
    stop: int

    def batches(self, size: int) -> Iterator[slice]:
        """The shard's items in slices of `size`; the last may be shorter."""
        for start in range(self.start, self.stop, size):
            yield slice(start, min(start + size, self.stop))


Make = Callable[[Shard, Path, Tick], None]


def cut(kind: str, count: int, size: int) -> list[Shard]:
    """Shards of `size` items, named `kind-00000`, `kind-00001`, …"""
    starts = range(0, count, size)
    return [Shard(f"{kind}-{i:05d}", start, min(start + size, count)) for i, start in enumerate(starts)]


@contextmanager
def shared_state(stage: str, digest: str, root: Path, processes: Processes) -> Iterator[Path]:
    """`stage_state` for several processes: the main one locks it and removes it at the end, the others share it."""
    if processes.is_main:
        with stage_state(stage, digest, root) as folder:
            for path in folder.glob(".*.tmp"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            processes.wait()
            yield folder
    else:
        processes.wait()
        yield state_folder(stage, digest, root)


def run_shards(
    shards: Sequence[Shard],
    folder: Path,
    processes: Processes,
    open_maker: Callable[[], Make],
    unit: str,
    check: Callable[[Path], object] = lambda folder: None,
) -> None:
    """Make this process's shards that are not there yet, every n-th one, then wait for the other processes.

    `open_maker` loads what the work needs, and is called only if there is work; the maker fills a shard's folder and reports
    items as they are done. A finished shard for whose folder `check` raises an `SgpipeError` is damaged and made again. Raises
    `StateError` saying how far the work had come where a file cannot be written.
    """
    mine = shards[processes.index :: processes.count]
    missing = [shard for shard in mine if not _is_made(folder / shard.name, check)]
    total, left = (sum(shard.stop - shard.start for shard in each) for each in (mine, missing))
    if missing:
        make, hidden = open_maker(), not processes.is_main
        with tqdm(total=total, initial=total - left, unit=unit, disable=hidden, smoothing=0.1, dynamic_ncols=True) as bar:
            for shard in missing:
                _make_whole(shard, folder, make, bar.update)
    processes.wait()


def _is_made(folder: Path, check: Callable[[Path], object]) -> bool:
    try:
        if folder.is_dir():
            check(folder)
            return True
    except SgpipeError as error:
        print(f"warning: {error}; it is made again")
        shutil.rmtree(folder)
    return False


def _make_whole(shard: Shard, folder: Path, make: Make, tick: Tick) -> None:
    temporary = folder / f".{shard.name}.{os.getpid()}.tmp"
    try:
        temporary.mkdir()
        make(shard, temporary, tick)
        for path in [*temporary.iterdir(), temporary]:
            fsync(path)
        temporary.rename(folder / shard.name)
    except OSError as error:
        done = sum(1 for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
        raise StateError(
            f"{shard.name}: {error}; {done} finished shards stay in {folder}; mend the cause (`df -h`) and run the same "
            "command again"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
