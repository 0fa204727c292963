"""The parts of a pipeline on the meta device: real classes and real shapes, no weights and no memory."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sgpipe.backbones.source import part_configs, snapshot_folder
from sgpipe.doctor.published import PUBLISHED
from sgpipe.errors import ModelError

PARTS = ("transformer", "text_encoder", "text_encoder_2", "vae")
LORA_TARGETS = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0")


def read_configs(folder: Path) -> dict[str, dict[str, Any]]:
    """The config.json of every part of a diffusers pipeline folder. Raises `ModelError` naming the file
    at fault.
    """
    return part_configs(folder, PARTS)


def configs_of(model: str, revision: str | None) -> dict[str, dict[str, Any]]:
    """Configurations of a folder, of a cached hub id, else as published. Raises `ModelError` if there
    are none.
    """
    folder = snapshot_folder(model, revision)
    if folder is not None:
        return read_configs(folder)
    if model in PUBLISHED:
        return PUBLISHED[model]
    raise ModelError(
        f"backbone.model: {model!r} is neither a folder nor in the hub cache, and its architecture is not "
        "known here "
        f"(known: {', '.join(PUBLISHED)}); run `hf download {model}` or give a folder"
    )


def build(config: dict[str, Any]) -> nn.Module:
    """The module that a config.json describes, on the meta device, frozen, in evaluation mode."""
    import diffusers
    import transformers

    name = config.get("_class_name") or (config.get("architectures") or [None])[0]
    kind = getattr(diffusers, str(name), None) or getattr(transformers, str(name), None)
    if kind is None:
        raise ModelError(
            f"config.json names the class {name!r}, which neither diffusers nor transformers has"
        )
    try:
        with torch.device("meta"):
            if "_class_name" in config:
                module = kind.from_config(config)
            else:
                module = kind(kind.config_class(**config))
    except Exception as error:  # as loading does: classes of errors differ by library and by value
        said = " ".join(str(error).split())[:300]
        raise ModelError(
            f"{name} cannot be built from its config.json: {type(error).__name__}: {said}"
        ) from error
    return module.requires_grad_(False).eval()


@dataclass(frozen=True)
class Size:
    """Parameters of a part: all, those in weights of linear layers (what quantisation shrinks), the
    largest such weight, the largest of all.
    """

    total: int
    linear: int
    largest_linear: int
    largest: int

    def bytes(self, precision: str) -> float:
        """Bytes of the weights. `nf4` keeps one float32 scale per 64 weights (QLoRA §3, without double
        quantisation).
        """
        per_linear = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "int8": 1.0, "nf4": 0.5 + 4 / 64}[
            precision
        ]
        rest = 4.0 if precision == "float32" else 2.0
        return self.linear * per_linear + (self.total - self.linear) * rest


def size_of(module: nn.Module) -> Size:
    """Count a module's parameters; shared ones once."""
    linear = {id(m.weight): m.weight.numel() for m in module.modules() if isinstance(m, nn.Linear)}
    every = [weight.numel() for weight in module.parameters()]
    return Size(sum(every), sum(linear.values()), max(linear.values(), default=0), max(every, default=0))


def lora_targets(transformer: nn.Module, blocks: Iterable[int]) -> list[str]:
    """Names of the attention projections of the given double-stream blocks (seed document: to_q, to_k,
    to_v, to_out.0).
    """
    numbers = "|".join(map(str, blocks))
    pattern = re.compile(rf"transformer_blocks\.({numbers})\.({'|'.join(map(re.escape, LORA_TARGETS))})")
    return [name for name, _ in transformer.named_modules() if numbers and pattern.fullmatch(name)]


def lora_parameters(transformer: nn.Module, targets: Iterable[str], rank: int) -> int:
    """Parameters of rank-r adapters: r · (in + out) for each target (LoRA, Hu et al. 2021, §4.1)."""
    layers = [transformer.get_submodule(name) for name in targets]
    return sum(
        rank * (layer.in_features + layer.out_features) for layer in layers if isinstance(layer, nn.Linear)
    )
