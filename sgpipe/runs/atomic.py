"""Files that are either whole or absent: temporary name, fsync, rename."""

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

DIGITS = 6
"""Significant digits of a float in a metrics file, so that `git diff` shows changes and not rounding."""


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is synced and renamed to `path`, on error removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        _fsync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _fsync(path.parent)


def _rounded(value: Any, where: str, digits: int | None) -> Any:
    if isinstance(value, dict):
        return {str(key): _rounded(item, f"{where}.{key}", digits) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item, f"{where}[{i}]", digits) for i, item in enumerate(value)]
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(
                f"{where.lstrip('.')} = {value}: a metrics file holds finite numbers; leave the key out or use null"
            )
        return value if digits is None else float(f"{value:.{digits}g}")
    return value


def write_json(value: Any, path: Path, digits: int | None = DIGITS) -> None:
    """Write `value` as JSON with sorted keys, atomically; floats have so many significant digits, all of them with None."""
    text = json.dumps(_rounded(value, "", digits), indent=2, sort_keys=True, ensure_ascii=False)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
