"""Checkpoints of a training: everything that its next step depends on, the last two kept."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sgpipe.errors import StateError, first_line
from sgpipe.runs.atomic import atomic_path
from sgpipe.runs.checkpoints import read_checkpoint

KEPT = 2


@dataclass
class History:
    """What was seen so far: mean loss parts by step, and controls by step; plain values only."""

    steps: list[dict[str, float]] = field(default_factory=list)
    controls: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Checkpoint:
    """A training after `step` steps: trained weights, their average (None without one), the optimiser, the history."""

    step: int
    weights: dict[str, Tensor]
    average: dict[str, Tensor] | None
    optimiser: dict[str, Any]
    history: History


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoints in a folder, oldest first."""
    return sorted(folder.glob("step-*.pt"))


def save(checkpoint: Checkpoint, folder: Path) -> Path:
    """Write a checkpoint whole or not at all, and drop all but this one and the one before.

    Those of later steps were passed over as damaged, and go, too. Raises `StateError` where the disk refuses.
    """
    path = folder / f"step-{checkpoint.step:08d}.pt"
    try:
        with atomic_path(path) as temporary:
            torch.save({**vars(checkpoint), "history": asdict(checkpoint.history)}, temporary)
    except (OSError, RuntimeError) as error:
        last = checkpoints(folder)
        raise StateError(
            f"step {checkpoint.step}: the checkpoint {path} cannot be written ({first_line(error)}); the last good one is "
            f"{last[-1] if last else 'none'}; mend the cause (`df -h`) and run the same command again"
        ) from error
    found = checkpoints(folder)
    later = found.index(path) + 1
    for other in (*found[: max(0, later - KEPT)], *found[later:]):
        other.unlink()
    return path


def load_last(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole, or None. A damaged one is passed over for the one before, with a printed sentence."""
    paths = checkpoints(folder)
    for path in reversed(paths):
        found = read_checkpoint(path)
        if found is None:
            continue
        try:
            return Checkpoint(**{**found, "history": History(**found["history"])})
        except (KeyError, TypeError) as error:
            print(f"warning: {path} cannot be read ({first_line(error)}) and is passed over")
    if paths:
        print(f"warning: {folder}: no checkpoint is whole; the training starts from its first step")
    return None
