"""LoRA (Hu et al. 2022) on exactly the projections asked for, by peft."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor, nn

from sgpipe.backbones.base import Layout
from sgpipe.backbones.rectified_flow import generator
from sgpipe.errors import ModelError, ParamsError
from sgpipe.training.config import Lora

NAME = "default"


def target_modules(layout: Layout, lora: Lora) -> list[str]:
    """Full module names that get LoRA, block by block. Raises `ParamsError` for blocks or targets that the model lacks."""
    double = lora.blocks.resolve(layout.double_blocks, "lora.blocks")
    single = lora.single_blocks.resolve(layout.single_blocks, "lora.single_blocks")
    there = {
        name.removeprefix("attn."): name for name in (*layout.image_projections, *layout.text_projections)
    }
    alone = layout.single_projections
    names: list[str] = []
    for blocks, block, kind, valid in (
        (double, layout.double_block, "blocks", there),
        (single, layout.single_block, "single_blocks", alone),
    ):
        parts = [valid[target] for target in lora.targets if target in valid]
        named = [f"{block.format(index=index)}.{part}" for index in blocks for part in parts]
        found = [name for name in named if name not in layout.lacking]
        if blocks and not found:
            raise ParamsError(
                f"lora.targets: {', '.join(lora.targets)}: none of them is in lora.{kind}; valid there: {', '.join(valid)}"
            )
        names += found
    return names


def lora_config(names: Sequence[str], lora: Lora) -> LoraConfig:
    """peft's configuration for modules of these full names."""
    return LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=list(names), bias="none"
    )


def attach(transformer: Any, names: Sequence[str], lora: Lora) -> dict[str, nn.Parameter]:
    """Inject LoRA into `names` and nothing else; everything else is frozen. The trainable weights by name, in float32.

    Down-projections start as Kaiming-uniform draws that depend on the seed and the module's name, up-projections at 0, so the
    model's function does not change. Raises `ModelError` if peft matched other modules than those asked for.
    """
    transformer.requires_grad_(False)
    if not names:
        return {}
    transformer.add_adapter(lora_config(names, lora), adapter_name=NAME)
    weights: dict[str, nn.Parameter] = {}
    for name, parameter in transformer.named_parameters():
        if ".lora_" not in name:
            continue
        parameter.data = parameter.data.float()
        if ".lora_A." in name and parameter.device.type != "meta":
            bound = 1 / math.sqrt(parameter.shape[1])
            draw = torch.rand(parameter.shape, generator=generator(lora.seed, "lora", name))
            parameter.data.copy_((2 * draw - 1) * bound)
        weights[name] = parameter
    matched = {name.partition(".lora_")[0] for name in weights}
    if matched != set(names):
        odd = sorted(matched ^ set(names))
        raise ModelError(f"LoRA sits on other modules than asked for: {', '.join(odd[:5])}; these differ")
    return weights


def plain_name(name: str) -> str:
    """A weight's name without that of its adapter, as files have it: `….lora_A.weight`."""
    return name.replace(f".{NAME}.", ".")


def count(weights: dict[str, Tensor] | dict[str, nn.Parameter]) -> int:
    """Numbers in all weights."""
    return sum(weight.numel() for weight in weights.values())
