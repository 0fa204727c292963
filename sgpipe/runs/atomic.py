"""Files that are either whole or absent: temporary name, fsync, rename. And what a figure that is undefined becomes in them."""

import fcntl
import glob
import json
import math
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sgpipe.errors import DataError

DIGITS = 6
"""Significant digits of a float in a metrics file, so that `git diff` shows changes and not rounding."""


def fsync(path: Path) -> None:
    """Have the disk hold a file, or a folder's list of names, before this returns."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_if_abandoned(temporary: Path) -> None:
    """Remove a temporary file whose writer was killed: a living one holds its lock."""
    with suppress(OSError), temporary.open("rb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        temporary.unlink()


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is synced and renamed to `path`, on error removed.

    What a writer of `path` that was killed left behind is removed first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        _remove_if_abandoned(left)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(stream, fcntl.LOCK_EX)
            yield temporary
        fsync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync(path.parent)


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yield a temporary folder that takes the place of `out` when the body ends well."""
    temporary = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    yield temporary
    shutil.rmtree(out, ignore_errors=True)
    temporary.rename(out)


def _walked(value: Any, where: str, digits: int | None, undefined: dict[str, float]) -> Any:
    """Plain values for JSON, floats rounded; a number that is not finite becomes null and an entry of `undefined` by its key."""
    if isinstance(value, Mapping):
        return {str(key): _walked(item, f"{where}.{key}", digits, undefined) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_walked(item, f"{where}[{i}]", digits, undefined) for i, item in enumerate(value)]
    if isinstance(value, float):
        if not math.isfinite(value):
            undefined[where.lstrip(".")] = value
            return None
        return value if digits is None else float(f"{value:.{digits}g}")
    return value


def plain(value: Any) -> Any:
    """`value` with null for numbers that are not finite: figures that are undefined, as a mean over nothing."""
    return _walked(value, "", None, {})


def defined(value: Any, what: object) -> Any:
    """`plain`, with a warning on stderr that names the undefined figures of `what`, the first ten of them."""
    undefined: dict[str, float] = {}
    found = _walked(value, "", None, undefined)
    if undefined:
        more = f" and {len(undefined) - 10} more" if len(undefined) > 10 else ""
        named = ", ".join(list(undefined)[:10])
        print(f"warning: {what}: undefined, written as null: {named}{more}", file=sys.stderr)
    return found


def write_json(value: Any, path: Path, digits: int | None = None) -> None:
    """Write `value` as JSON with sorted keys, atomically; floats exactly, or with `digits` significant digits.

    Raises `DataError` naming the key of a number that is not finite.
    """
    undefined: dict[str, float] = {}
    found = _walked(value, "", digits, undefined)
    for key, number in undefined.items():
        raise DataError(f"{path}: {key} is {number}: JSON holds finite numbers; leave the key out or use null")
    text = json.dumps(found, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def link(source: Path | str, target: Path | str) -> None:
    """Give a finished file a second name, or a copy where the file systems differ: the state keeps its own until the end."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
