"""What a command says while it works, and when it is stopped.

A command opens a bar, and the loops far below it tick, which do nothing where no bar is open: a sampler need not know who asked.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    from tqdm import tqdm

T = TypeVar("T")
SHOWN_AFTER: Final = 5.0
"""Seconds after which a bar appears: what is done sooner needs none."""
AGAIN: Final = "stopped before the end; nothing half-made is left: run the same command again"
_bar: ContextVar["tqdm[Any] | None"] = ContextVar("bar", default=None)
_how_to_go_on = AGAIN


def _options(what: str, unit: str) -> dict[str, Any]:
    return {"desc": what, "unit": unit, "delay": SHOWN_AFTER, "mininterval": 1, "dynamic_ncols": True}


@contextmanager
def progress(total: int, what: str, unit: str) -> Iterator[None]:
    """Within the body `tick` moves a bar on stderr with the rate and the time that is left."""
    from tqdm import tqdm

    with tqdm(total=total, **_options(what, unit)) as bar:
        token = _bar.set(bar)
        try:
            yield
        finally:
            _bar.reset(token)


def tick(count: int = 1) -> None:
    """So many units more are done."""
    if (bar := _bar.get()) is not None:
        bar.update(count)


def through(items: Iterable[T], what: str, unit: str, total: int | None = None) -> Iterator[T]:
    """The items, with a bar of their own."""
    from tqdm import tqdm

    yield from tqdm(items, total=total, **_options(what, unit))


class FileBars:
    """A bar per file, by bytes that were read."""

    def __init__(self) -> None:
        self._bars: dict[Path, tqdm[Any]] = {}

    def show(self, path: Path, done: int) -> None:
        """`done` bytes of the file are read."""
        from tqdm import tqdm

        if path not in self._bars:
            self._bars[path] = tqdm(total=path.stat().st_size, unit_scale=True, **_options(path.name, "B"))
        self._bars[path].update(done - self._bars[path].n)


def keeps(sentence: str) -> None:
    """What this process says when it is stopped by Ctrl-C from now on: what is kept, and how to go on."""
    global _how_to_go_on
    _how_to_go_on = sentence


def how_to_go_on() -> str:
    """What is said to who stopped this process."""
    return _how_to_go_on
