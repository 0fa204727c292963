"""Checkpoints of a training: one that was damaged costs the work since the one before, never the training."""

from pathlib import Path
from typing import Any

import torch

from sgpipe.errors import first_line


def read_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any] | None:
    """What `torch.save` wrote of a mapping, its tensors on `device`; None, after a printed sentence, for a damaged file."""
    try:
        found = torch.load(path, map_location=device, weights_only=True)
        if not isinstance(found, dict):
            raise ValueError(f"holds a {type(found).__name__}")
    except (
        Exception
    ) as error:  # what damage raises depends on where the bytes end, and is no list that one could name
        print(f"warning: {path} cannot be read ({first_line(error)}) and is passed over")
        return None
    return found
