"""Checkpoints written whole and loaded strictly: what the libraries warn about (weights missing, unexpected or of another shape)
is an error.
"""

import errno
import json
import os
import pickle
import re
import struct
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from sgpipe.errors import ModelError
from sgpipe.runs.atomic import atomic_path

_SHOWN = 5
OF_THE_MACHINE: Final = (MemoryError, torch.OutOfMemoryError)
"""Errors of a loader that say nothing of its file.

Loaders answer foreign bytes with whatever their code meets first. Of damaged files, open_clip 3.3, transformers 5.23, safetensors
0.8 and torch 2.14 raised `SafetensorError`, `UnpicklingError`, `EOFError`, `struct.error`, `IndexError`, `KeyError`,
`AttributeError`, `TypeError`, `ValueError`, `StopIteration`, `ZeroDivisionError`, `OSError` and `RuntimeError`. So every other
`Exception` of a loader is about what it was given.
"""
_CUT: Final = "it is empty, cut off or of another format"
_LONGEST: Final = 300


def write_tensors(tensors: Mapping[str, Tensor], path: Path, about: dict[str, str] | None = None) -> None:
    """Write a safetensors file atomically. Raises `OSError` where the disk refuses.

    `about` has one entry of metadata at most, since safetensors writes several in an order that changes.
    """
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        try:
            save_file(whole, temporary, metadata=about)
        except SafetensorError as error:
            said = re.search(r"os error (\d+)", str(error))
            number = int(said[1]) if said else errno.EIO
            raise OSError(number, os.strerror(number), str(path)) from error
        temporary.chmod(0o644)


def refuse(problems: Collection[str], source: Path | str, remedy: str) -> None:
    """Raises `ModelError` with the first of the problems that were found in `source`; nothing where there are none."""
    if problems:
        more = f" and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise ModelError(f"{source}: {'; '.join(sorted(problems)[:_SHOWN])}{more}; {remedy}")


def name_problems(missing: Collection[str], unexpected: Collection[str]) -> list[str]:
    """One sentence for each tensor that a checkpoint lacks, or has beyond what its module takes."""
    return [f"{name} is missing" for name in missing] + [f"{name} is unexpected" for name in unexpected]


def check_state(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], source: Path | str, remedy: str) -> None:
    """A state dict has exactly the tensors `wanted`, of their shapes, all finite. Raises `ModelError` naming those at fault."""
    problems = name_problems(wanted.keys() - state.keys(), state.keys() - wanted.keys())
    for name in wanted.keys() & state.keys():
        if state[name].shape != wanted[name].shape:
            problems.append(f"{name} is {tuple(state[name].shape)}, expected {tuple(wanted[name].shape)}")
        elif not torch.isfinite(state[name]).all():
            problems.append(f"{name} holds values that are not finite")
    refuse(problems, source, remedy)


def check_report(module: nn.Module, report: Mapping[str, Any], source: Path | str, remedy: str) -> None:
    """The loading report of transformers or diffusers (`output_loading_info=True`) names nothing at fault. Raises `ModelError`.

    Two kinds of names may be absent or superfluous, as they cannot change a result: a tied weight whose partner was loaded, and
    a buffer that the module computes itself and does not save (`position_ids` of older checkpoints).
    """
    missing = set(report["missing_keys"])
    tensors = dict(module.named_parameters(remove_duplicate=False))
    loaded = {id(tensor) for name, tensor in tensors.items() if name not in missing}
    tied = {name for name in missing if name in tensors and id(tensors[name]) in loaded}
    computed = {name for name, _ in module.named_buffers()} - module.state_dict().keys()
    problems = name_problems(missing - tied, set(report["unexpected_keys"]) - computed)
    problems += [f"{' '.join(map(str, each))} is of another shape" for each in report["mismatched_keys"]]
    problems += [" ".join(str(message).split()) for message in report.get("error_msgs", ())]
    refuse(problems, source, remedy)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ModelError(f"{path}: cannot be read ({error}); fetch the checkpoint again") from None
    if not isinstance(content, dict):
        raise ModelError(f"{path}: a JSON object is needed, got {type(content).__name__}")
    return content


_ANY_TOKENIZER = ("PreTrainedTokenizer", "TokenizersBackend")
"""Classes that a tokenizer's configuration names where every class can read it."""


_VOID = {"AutoencoderKLFlux2": {"force_upcast"}, "QwenImageTransformer2DModel": {"pooled_projection_dim"}}
"""Entries that published configurations have, though neither their class nor its pipeline ever read them."""


def check_config(path: Path, kind: Any) -> None:
    """A configuration file is that of class `kind`, and says nothing that this class would ignore. Raises `ModelError`.

    The libraries warn about both and go on: with another architecture, or with an entry left without effect.
    """
    config = _read(path)
    named = "processor_class" if kind.__name__.endswith("Processor") else "tokenizer_class"
    asked, stated = kind.__name__, config.get("_class_name", config.get(named))
    if own := getattr(getattr(kind, "config_class", None), "model_type", None):
        asked, stated = own, config.get("model_type")
    valid = (asked.removesuffix("Fast"), *_ANY_TOKENIZER)
    if stated is not None and str(stated).removesuffix("Fast") not in valid:
        raise ModelError(
            f"{path}: describes a {stated}, and model_index.json asks for a {asked} ({kind.__name__}); fetch the checkpoint again, "
            "or name there the class that was saved"
        )
    if not hasattr(kind, "extract_init_dict"):
        return
    ignored = kind.extract_init_dict({**config, "_class_name": kind.__name__})[1]
    odd = sorted(name for name, value in ignored.items() if not name.startswith("_") and value is not None)
    odd = [name for name in odd if name not in _VOID.get(kind.__name__, ())]
    if odd:
        raise ModelError(
            f"{path}: {', '.join(odd[:_SHOWN])}: unknown to this diffusers' {asked}, which would ignore it; install the version "
            f"that saved the checkpoint ({config.get('_diffusers_version', 'not stated')}), or take the entry out if it is void"
        )


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
