"""Checkpoints of a training: everything that its next step depends on, the last two kept."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from sgpipe.runs.checkpoints import newest_checkpoint, save_checkpoint


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


def save(checkpoint: Checkpoint, folder: Path) -> Path:
    """Write a checkpoint; the last two are kept. Raises `StateError` where the disk refuses."""
    return save_checkpoint(
        {**vars(checkpoint), "history": asdict(checkpoint.history)}, checkpoint.step, folder
    )


def load_last(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole, or None."""
    return newest_checkpoint(
        folder, lambda path, found: Checkpoint(**{**found, "history": History(**found["history"])})
    )
