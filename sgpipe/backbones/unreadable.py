"""Why a library could not read weights or a configuration, as one line.

Loaders answer foreign bytes with whatever their code meets first. Of damaged files, open_clip 3.3,
transformers 5.23, safetensors 0.8 and torch 2.14 raised `SafetensorError`, `UnpicklingError`, `EOFError`,
`struct.error`, `IndexError`, `KeyError`, `AttributeError`, `TypeError`, `ValueError`, `StopIteration`,
`ZeroDivisionError`, `OSError` and `RuntimeError`. So every `Exception` of a loader is about what it was
given, but for those of `OF_THE_MACHINE`.
"""

import pickle
import struct
from typing import Final

import torch
from safetensors import SafetensorError

OF_THE_MACHINE: Final = (MemoryError, torch.OutOfMemoryError)
"""Errors of a loader that say nothing of its file."""
_CUT: Final = "it is empty, cut off or of another format"
_LONGEST: Final = 300


def why(error: Exception) -> str:
    """What a loader's error says of its file, in one line."""
    said = " ".join(str(error).split())[:_LONGEST]
    if isinstance(error, SafetensorError):
        return f"{_CUT}: {said}"
    if isinstance(error, pickle.UnpicklingError):
        # torch's text advises to switch its protection off
        return "it holds Python objects other than tensors, or is no checkpoint"
    if isinstance(error, EOFError | struct.error | IndexError):
        return _CUT
    if isinstance(error, AttributeError | StopIteration):
        return f"it holds something other than named tensors or the entries of a configuration ({said or type(error).__name__})"
    return f"{type(error).__name__}: {said}"
