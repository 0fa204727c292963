"""Checkpoints of a training: one that was damaged costs the work since the one before, never the training.

They are PyTorch files of tensors and plain values, `step-<n>.pt`, of which the last two are kept.
"""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch

from sgpipe.errors import SgpipeError, StateError, first_line
from sgpipe.runs.atomic import atomic_path
from sgpipe.runs.command import is_out_of_memory

KEPT: Final = 2


def read_checkpoint(path: Path) -> dict[str, Any] | None:
    """The mapping that `torch.save` wrote, tensors on the CPU, read without running code.

    None for a file that is absent or, with a warning, damaged. Raises `StateError` where the disk refuses to read it.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(found, dict):
            raise ValueError(f"holds a {type(found).__name__}")
        return found
    except FileNotFoundError:
        return None
    except Exception as error:  # damaged bytes end in many: UnpicklingError, struct.error, EOFError …
        if isinstance(error, OSError) and not isinstance(error, IsADirectoryError):
            raise StateError(
                f"{path}: the disk does not give it ({first_line(error)}); nothing was removed, so run the same command again"
            ) from error
        _passed_over(path, error)
        return None


def _passed_over(path: Path, error: Exception) -> None:
    if is_out_of_memory(error):
        raise error
    said = f"{type(error).__name__}: {first_line(error)[:200]}"
    print(f"warning: {path} cannot be read ({said}) and is passed over", file=sys.stderr)


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoints in a folder, oldest first."""
    return sorted(folder.glob("step-*.pt"))


def last_checkpoint(folder: Path) -> Path | str:
    """The newest checkpoint in a folder, or `none`, for messages."""
    return next(reversed(checkpoints(folder)), "none")


def save_checkpoint(content: Mapping[str, Any], step: int, folder: Path) -> Path:
    """Write `content` and its `step` whole or not at all, and drop all checkpoints but this one and the one before.

    Those of later steps were passed over as damaged; they are put aside as `step-<n>.damaged`. Raises `StateError` where the disk
    refuses.
    """
    path = folder / f"step-{step:08d}.pt"
    try:
        with atomic_path(path) as temporary:
            torch.save({**content, "step": step}, temporary)
    except (OSError, RuntimeError) as error:
        raise StateError(
            f"step {step}: the checkpoint {path} cannot be written ({first_line(error)}); the last good one is "
            f"{last_checkpoint(folder)}; mend the cause (`df -h`) and run the same command again"
        ) from error
    found = checkpoints(folder)
    later = found.index(path) + 1
    for old in found[: max(0, later - KEPT)]:
        old.unlink()
    for damaged in found[later:]:
        damaged.rename(damaged.with_suffix(".damaged"))
    return path


def newest_checkpoint(folder: Path, accept: Callable[[Path, dict[str, Any]], None]) -> None:
    """Have `accept` take the newest checkpoint that is whole, if there is one.

    A damaged one, and one that `accept` cannot take, is passed over for the one before with a warning.
    """
    paths = checkpoints(folder)
    for path in reversed(paths):
        if (stored := read_checkpoint(path)) is None:
            continue
        try:
            return accept(path, stored)
        except (SgpipeError, KeyError, TypeError, ValueError, RuntimeError) as error:
            _passed_over(path, error)
    if paths:
        print(f"warning: {folder}: no checkpoint is whole; the training starts from its first step", file=sys.stderr)
