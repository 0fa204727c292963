"""Training checkpoints as PyTorch files of tensors and plain values."""

import sys
from pathlib import Path
from typing import Any

import torch

from sgpipe.runs.command import is_out_of_memory


def read_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any] | None:
    """What `torch.save` wrote, read without running code; None, with a warning, for a file that is damaged or absent."""
    if not path.is_file():
        return None
    try:
        found = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # damaged bytes end in many: UnpicklingError, struct.error, EOFError …
        if is_out_of_memory(error):
            raise
        said = " ".join(str(error).split())[:200]
        print(
            f"warning: {path} cannot be read ({type(error).__name__}: {said}); it is passed over",
            file=sys.stderr,
        )
        return None
    return found if isinstance(found, dict) else None
