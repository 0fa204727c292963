"""Working state of a long stage, kept outside its outputs (DVC deletes those before a stage runs).

The state lives in `<parent of the DVC cache dir>/stage-state/<stage>-<fingerprint>/`, which experiments in temporary
workspaces share with the main one; where this user may not write there, in a folder of the user's own (`user_dir`). The
fingerprint hashes the resolved configuration, the inputs, the code, the device kind and the library versions: a changed experiment
never continues from another's state.
"""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sgpipe.errors import StateError
from sgpipe.runs.code import check_unchanged, code_of, installed
from sgpipe.runs.progress import AGAIN, keeps

SHARED = "SGPIPE_SHARED"
"""Names the folder that `beside_cache` finds, for a process that outlives the workspace whose configuration says it."""


def user_dir(path: Path) -> Path:
    """This user's own stand-in for a shared folder: `$XDG_STATE_HOME/sgpipe/<hash of its path>`, by default in `~/.local/state`."""
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(home) / "sgpipe" / hashlib.sha256(str(path).encode()).hexdigest()[:16]


def writable(path: Path) -> bool:
    """Whether this user may make files in the folder `path`, or make it where it is not there yet."""
    there = next(each for each in (path, *path.parents) if each.exists())
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)


def _or_own(path: Path) -> Path:
    """`path`, or this user's stand-in where it is not writable. Raises `StateError` where that is not writable either."""
    if writable(path):
        return path
    if not writable(own := user_dir(path)):
        raise StateError(
            f"neither {path} nor {own} can be written; make one of them writable, or set XDG_STATE_HOME to a folder that is"
        )
    return own


def beside_cache(root: Path) -> Path:
    """Parent of the DVC cache directory, whoever may write there; `root/.dvc` without a DVC repository."""
    if named := os.environ.get(SHARED):
        return Path(named)
    from dvc.config import Config

    dvc_dir = root / ".dvc"
    if not dvc_dir.is_dir():
        return dvc_dir.resolve()
    cache = Config(str(dvc_dir))["cache"].get("dir")
    return Path(cache).resolve().parent if cache else dvc_dir.resolve()


def shared_dir(root: Path) -> Path:
    """Parent of the DVC cache directory, which all workspaces of a repository share; `root/.dvc` without a DVC repository.

    Where this user may not write there, `user_dir` of it.
    """
    return _or_own(beside_cache(root))


def states_dir(root: Path) -> Path:
    """The folder of all working states of a repository, as this user can write it."""
    return _or_own(shared_dir(root) / "stage-state")


def file_hash(path: Path) -> str:
    """SHA-256 of a file, or of the sorted relative names and hashes of a folder's files."""
    if path.is_dir():
        lines = [f"{p.relative_to(path).as_posix()} {file_hash(p)}" for p in sorted(path.rglob("*")) if p.is_file()]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def config_hash(config: Any) -> str:
    """First 16 hex digits of the SHA-256 of `config` (plain values) in canonical JSON."""
    return hashlib.sha256(json.dumps(config, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]


def fingerprint(module: str, config: Any, inputs: Iterable[Path], root: Path, device: str) -> str:
    """16 hex digits that change with the configuration, any input's content, the stage's code, its libraries' installed versions
    or `device`, the kind of device that computes."""
    code = code_of(module, root)
    data = {str(path): file_hash(path) for path in sorted(inputs)}
    libraries = installed(code.libraries)
    return config_hash({"config": config, "code": code.digest, "libraries": libraries, "device": device, "inputs": data})


def state_folder(stage: str, digest: str, root: Path) -> Path:
    """Where a stage's working state with this fingerprint lies, or would lie."""
    return states_dir(root) / f"{stage.replace('@', '-')}-{digest}"


def lock_of(folder: Path) -> FileLock:
    """The lock that the process holds whose state `folder` is."""
    return FileLock(folder.with_name(f"{folder.name}.lock"))


@contextmanager
def stage_state(stage: str, digest: str, root: Path) -> Iterator[Path]:
    """The stage's state folder, locked against a second copy of the same stage; removed when the body ends well.

    Raises `StateError` if another process holds it. On an error or a kill it stays, and the same command continues from it;
    so it does where the stage's code changed meanwhile (`CodeError`).
    """
    folder = state_folder(stage, digest, root)
    if not folder.parent.is_relative_to(beside_cache(root)):
        print(f"note: {beside_cache(root)} is not yours to write; working state is kept in {folder.parent}", file=sys.stderr)
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = lock_of(folder)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise StateError(
            f"stage {stage}: another process is running the same stage with the same configuration (lock {lock.lock_file}); "
            "wait for it or stop it, then run the same command again"
        ) from None
    try:
        folder.mkdir(exist_ok=True)
        keeps(f"stopped; what was finished is kept in {folder}: run the same command again to go on from there")
        yield folder
        keeps(AGAIN)
        check_unchanged()
        shutil.rmtree(folder)
        Path(lock.lock_file).unlink()  # a process that waits on the old file sees that it is gone
    finally:
        lock.release()
