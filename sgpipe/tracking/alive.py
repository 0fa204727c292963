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


def _path(root: Path, token: str) -> Path:
    return shared_dir(root) / "mlflow-runs" / f"{token}.lock"


class Alive:
    """The lock of one run of this process, held until `release`."""

    def __init__(self, root: Path) -> None:
        self.token = uuid.uuid4().hex
        self._file = _path(root, self.token)
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self._file)
        self._lock.acquire(timeout=0)

    def release(self, untold: str | None = None) -> None:
        """Give the lock up; `untold` is the final status of a run whose store could not be told, for whoever closes it later."""
        if untold is None:
            self._file.unlink(missing_ok=True)
        else:
            self._file.write_text(untold, encoding="utf-8")
        self._lock.release()


@contextmanager
def ended(root: Path, token: str) -> Iterator[str | None]:
    """The status in which the run with this lock ended, KILLED where its process could not say; None while it may live.

    Only one process at a time gets a status; when the body ends well the lock is removed.
    """
    file = _path(root, token)
    if not token or not file.is_file():
        yield None
        return
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield None
        return
    try:
        yield file.read_text(encoding="utf-8") or "KILLED"
        file.unlink(missing_ok=True)
    finally:
        lock.release()
