"""Whether the process that records a run still lives: it holds a file lock, which the kernel releases even after SIGKILL.

A run names its lock in the tag `sgpipe.lock`; the locks lie beside the store's default place, so that a run recorded from another
machine or another clone, whose lock is not there, is never taken for dead.
"""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from sgpipe.runs.state import shared_dir


def _lock(root: Path, token: str) -> FileLock:
    return FileLock(shared_dir(root) / "mlflow-runs" / f"{token}.lock", timeout=0)


class Alive:
    """The lock of one run of this process, held until `release`."""

    def __init__(self, root: Path) -> None:
        self.token = uuid.uuid4().hex
        self._lock = _lock(root, self.token)
        Path(self._lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
        self._lock.acquire()

    def release(self, untold: str | None = None) -> None:
        """Give the lock up; `untold` is the final status of a run whose store could not be told, for whoever closes it later."""
        if untold is None:
            Path(self._lock.lock_file).unlink(missing_ok=True)
        else:
            Path(self._lock.lock_file).write_text(untold, encoding="utf-8")
        self._lock.release()


@contextmanager
def ended(root: Path, token: str) -> Iterator[str | None]:
    """The status in which the run with this lock ended, KILLED where its process could not say; None while it may live.

    Only one process at a time gets a status; when the body ends well the lock is removed.
    """
    lock = _lock(root, token)
    file = Path(lock.lock_file)
    try:
        held = bool(token) and file.is_file() and bool(lock.acquire())
    except Timeout:
        held = False
    try:
        yield (file.read_text(encoding="utf-8") or "KILLED") if held else None
        if held:
            file.unlink(missing_ok=True)
    finally:
        lock.release()
