"""Working states that no run goes on from: listed, and removed when nothing has written to them for long."""

import re
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import Timeout

from sgpipe.runs.state import lock_of, states_dir

_NAME = re.compile(r".+-[0-9a-f]{16}")
_DAY = 86400.0


@dataclass(frozen=True)
class State:
    """A stage's working state, or the lock file that is left of one: bytes, and seconds since anything in it was written."""

    folder: Path
    size: int
    age: float
    running: bool


def _lock_file(folder: Path) -> Path:
    return Path(lock_of(folder).lock_file)


def _held(folder: Path) -> bool:
    """Whether a process holds the state's lock; another user's lock, which cannot be tried, counts as held."""
    if not _lock_file(folder).exists():
        return False
    try:
        with lock_of(folder).acquire(timeout=0):
            return False
    except (Timeout, PermissionError):
        return True


def _state(folder: Path, now: float) -> State:
    paths = [each for each in (folder, _lock_file(folder), *folder.rglob("*")) if each.exists()]
    facts = [each.stat() for each in paths]
    size = sum(fact.st_size for path, fact in zip(paths, facts, strict=True) if path.is_file())
    return State(folder, size, now - max(fact.st_mtime for fact in facts), _held(folder))


def states(root: Path) -> list[State]:
    """The working states of the repository at `root` that this user can write, by name."""
    place, now = states_dir(root), time.time()
    names = {path.name.removesuffix(".lock") for path in place.iterdir()} if place.is_dir() else set()
    return [_state(place / name, now) for name in sorted(names) if _NAME.fullmatch(name)]


def collect(root: Path, days: float) -> list[State]:
    """Remove the states to which nothing was written for `days`, lock files included; returns them. A running one stays."""
    removed = []
    for state in states(root):
        if state.running or state.age < days * _DAY:
            continue
        with suppress(Timeout, PermissionError), lock_of(state.folder).acquire(timeout=0):
            if state.folder.exists() and _state(state.folder, time.time()).age < days * _DAY:
                continue  # a stage ran since the list was made
            shutil.rmtree(state.folder, ignore_errors=True)
            _lock_file(state.folder).unlink(missing_ok=True)
            removed.append(state)
    return removed


def describe(state: State) -> str:
    """A line that says all of it."""
    size = f"{state.size / 2**20:.1f} MiB"
    what = ", running" if state.running else "" if state.folder.is_dir() else ", lock file alone"
    return f"{state.folder.name}  {size}  {state.age / _DAY:.1f} days old{what}"
