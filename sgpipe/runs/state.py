"""Working state of a long stage, kept outside its outputs (DVC deletes those before a stage runs).

The state lives in `<parent of the DVC cache dir>/stage-state/<stage>-<fingerprint>/`, which experiments in temporary
workspaces share with the main one. The fingerprint hashes the resolved configuration, the inputs and the code: a changed
experiment never continues from another's state.
"""

import hashlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sgpipe.errors import StateError
from sgpipe.runs.closure import import_closure

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent goes, since `kill -9` of DVC leaves its children. Linux only."""
    if sys.platform != "linux":
        return
    import ctypes

    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def shared_dir(root: Path) -> Path:
    """Parent of the DVC cache directory, which all workspaces of a repository share; `root/.dvc` without a DVC repository."""
    from dvc.config import Config

    dvc_dir = root / ".dvc"
    if not dvc_dir.is_dir():
        return dvc_dir.resolve()
    cache = Config(str(dvc_dir))["cache"].get("dir")
    return Path(cache).resolve().parent if cache else dvc_dir.resolve()


def file_hash(path: Path) -> str:
    """SHA-256 of a file, or of the sorted relative names and hashes of a folder's files."""
    if path.is_dir():
        lines = [
            f"{p.relative_to(path).as_posix()} {file_hash(p)}" for p in sorted(path.rglob("*")) if p.is_file()
        ]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def config_hash(config: Any) -> str:
    """First 16 hex digits of the SHA-256 of `config` (plain values) in canonical JSON."""
    return hashlib.sha256(json.dumps(config, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]


def fingerprint(module: str, config: Any, inputs: Iterable[Path], root: Path) -> str:
    """16 hex digits that change with the configuration, any input's content or any line of code the stage can run."""
    code = {name: file_hash(root / name) for name in import_closure(module, root)}
    data = {str(path): file_hash(path) for path in sorted(inputs)}
    return config_hash({"config": config, "code": code, "inputs": data})


def state_folder(stage: str, digest: str, root: Path) -> Path:
    """Where a stage's working state with this fingerprint lies, or would lie."""
    return shared_dir(root) / "stage-state" / f"{stage.replace('@', '-')}-{digest}"


@contextmanager
def stage_state(stage: str, digest: str, root: Path) -> Iterator[Path]:
    """The stage's state folder, locked against a second copy of the same stage; removed when the body ends well.

    Raises `StateError` if another process holds it. On an error or a kill it stays, and the same command continues from it.
    """
    folder = state_folder(stage, digest, root)
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_name(f"{folder.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise StateError(
            f"stage {stage}: another process is running the same stage with the same configuration (lock {lock.lock_file}); "
            "wait for it or stop it, then run the same command again"
        ) from None
    try:
        folder.mkdir(exist_ok=True)
        yield folder
        shutil.rmtree(folder)
    finally:
        lock.release()
