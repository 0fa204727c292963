"""Parts of a pipeline as modules: each loaded when it is needed, frozen, from safetensors only and without remote code."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sgpipe.backbones.source import locate, part_configs
from sgpipe.errors import ModelError
from sgpipe.params.backbone import Backbone

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def _class_of(folder: Path, part: str) -> tuple[str, Any]:
    """Library and class of a part, as model_index.json names them; only diffusers and transformers are asked."""
    index = part_configs(folder, ("",))[""]
    library, name = index.get(part) or (None, None)
    if library == "diffusers":
        import diffusers as module
    elif library == "transformers":
        import transformers as module
    else:
        raise ModelError(
            f"{folder}/model_index.json: {part} comes from {library!r}; only diffusers and transformers are loaded, no code "
            "of a checkpoint"
        )
    kind = getattr(module, str(name), None)
    if kind is None:
        raise ModelError(
            f"{folder}/model_index.json: {part} is a {name!r}, which this {library} does not have"
        )
    return library, kind


def load_module(backbone: Backbone, part: str) -> Any:
    """A part with weights, in `backbone.dtype`, frozen, in evaluation mode, on the CPU. Raises `ModelError`."""
    folder = locate(backbone, (part,))
    library, kind = _class_of(folder, part)
    precision = {"torch_dtype" if library == "diffusers" else "dtype": DTYPES[backbone.dtype]}
    try:
        module = kind.from_pretrained(folder / part, use_safetensors=True, local_files_only=True, **precision)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise ModelError(
            f"{folder / part}: the weights do not fit their config.json: {' '.join(str(error).split())[:300]}; fetch the "
            "checkpoint again"
        ) from error
    return module.requires_grad_(False).eval()


def load_plain(backbone: Backbone, part: str) -> Any:
    """A part without weights (a tokenizer, the scheduler). Raises `ModelError`."""
    folder = locate(backbone, (part,))
    _, kind = _class_of(folder, part)
    try:
        return kind.from_pretrained(folder / part, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{folder / part}: cannot be loaded: {' '.join(str(error).split())[:300]}; fetch the checkpoint again"
        ) from error


def place(module: nn.Module, device: torch.device, offload: str) -> None:
    """Put a module where it will run: on the device, or layer by layer whenever one is called (`sequential`)."""
    if offload == "sequential" and device.type != "cpu":
        from accelerate import cpu_offload

        cpu_offload(module, device)
    else:
        module.to(device)


@contextmanager
def on_device(module: nn.Module, device: torch.device, offload: str) -> Iterator[None]:
    """The module can run on the device within the body; with `offload: model` it waits in main memory otherwise."""
    if offload == "model":
        module.to(device)
    try:
        yield
    finally:
        if offload == "model":
            module.to("cpu")
