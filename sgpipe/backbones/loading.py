"""Parts of a pipeline as modules: each loaded when it is needed, frozen, from safetensors only and without remote code."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sgpipe.backbones.config import Backbone
from sgpipe.backbones.source import locate, part_configs
from sgpipe.backbones.strict import check_config, check_report
from sgpipe.errors import ModelError, ParamsError
from sgpipe.runs.command import is_out_of_memory

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def check_part(folder: Path, part: str) -> tuple[str, Any]:
    """Library and class of a part, as model_index.json names them, whose configuration is that class's. Raises `ModelError`.

    Only diffusers and transformers are asked.
    """
    library, name = part_configs(folder, ("",))[""].get(part) or (None, None)
    if library not in ("diffusers", "transformers"):
        raise ModelError(
            f"{folder}/model_index.json: {part} comes from {library!r}; only diffusers and transformers are loaded, no code "
            "of a checkpoint"
        )
    kind = getattr(import_module(library), str(name), None)
    if kind is None:
        raise ModelError(f"{folder}/model_index.json: {part} is a {name!r}, which this {library} does not have")
    plain = "scheduler_config.json" if library == "diffusers" else "tokenizer_config.json"
    check_config(folder / part / ("config.json" if hasattr(kind, "state_dict") else plain), kind)
    return library, kind


def quantiser(backbone: Backbone, device: torch.device) -> Any:
    """diffusers' configuration of `backbone.quantisation`. Raises `ParamsError` where it cannot be had on this machine."""
    given = f"backbone.quantisation: got {backbone.quantisation}"
    if device.type != "cuda":
        raise ParamsError(f"{given}; bitsandbytes needs a CUDA GPU, and the model is to run on {device}; set it to null")
    try:
        version("bitsandbytes")
    except PackageNotFoundError:
        raise ParamsError(
            f"{given}; the package bitsandbytes is not installed; `pip install bitsandbytes`, or set it to null"
        ) from None
    from diffusers import BitsAndBytesConfig

    if backbone.quantisation == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=DTYPES[backbone.dtype])


def _said(error: Exception) -> str:
    """What a library raised, on one line. They raise errors of many classes for the same fault of a file."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def load_module(backbone: Backbone, part: str, device: torch.device | None = None) -> Any:
    """A part with weights, in `backbone.dtype`, frozen, in evaluation mode, on the CPU.

    A transformer for which `backbone.quantisation` asks is quantised as it is read, and on `device`. Raises `ModelError` for
    weights that are not exactly those of the class and configuration, or `ParamsError`.
    """
    folder = locate(backbone, (part,))
    library, kind = check_part(folder, part)
    how: dict[str, Any] = {"torch_dtype" if library == "diffusers" else "dtype": DTYPES[backbone.dtype]}
    if part == "transformer" and backbone.quantisation is not None:
        device = device or torch.device("cpu")
        how |= {"quantization_config": quantiser(backbone, device), "device_map": {"": device}}
    try:
        module, report = kind.from_pretrained(
            folder / part, use_safetensors=True, local_files_only=True, output_loading_info=True, **how
        )
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise ModelError(
            f"{folder / part}: the weights do not fit their config.json: {_said(error)}; fetch the checkpoint again"
        ) from error
    check_report(module, report, folder / part, "fetch the checkpoint again")
    return module.requires_grad_(False).eval()


def load_plain(backbone: Backbone, part: str) -> Any:
    """A part without weights (a tokenizer, the scheduler). Raises `ModelError`."""
    folder = locate(backbone, (part,))
    _, kind = check_part(folder, part)
    try:
        return kind.from_pretrained(folder / part, local_files_only=True)
    except Exception as error:
        raise ModelError(f"{folder / part}: cannot be loaded: {_said(error)}; fetch the checkpoint again") from error


def place(module: nn.Module, device: torch.device, offload: str) -> None:
    """Put a module where it will run: on the device, or layer by layer whenever one is called (`sequential`).

    A quantised one is on its device already. Raises `ParamsError` if it is to wait elsewhere.
    """
    if getattr(module, "is_quantized", False):
        if offload == "sequential":
            raise ParamsError(
                "compute.offload: got sequential; a quantised transformer stays on its device: set it to none or model, or "
                "backbone.quantisation to null"
            )
        return
    if offload == "sequential" and device.type != "cpu":
        from accelerate import cpu_offload

        cpu_offload(module, device)
    else:
        module.to(device)


@contextmanager
def on_device(module: nn.Module, device: torch.device, offload: str) -> Iterator[None]:
    """The module can run on the device within the body; with `offload: model` it waits in main memory otherwise."""
    if offload != "model" or getattr(module, "is_quantized", False):
        yield
        return
    module.to(device)
    try:
        yield
    finally:
        module.to("cpu")
