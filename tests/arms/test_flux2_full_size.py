"""FLUX.2's real sizes without weights: LoRA on exactly the modules asked for, and targets that fused projections hide."""

from typing import Any

import pytest
from torch import nn

from sgpipe.arms.config import Lora
from sgpipe.arms.lora import attach, count, target_modules
from sgpipe.backbones.base import Layout
from sgpipe.backbones.families.flux2 import Flux2
from sgpipe.doctor.memory import build
from sgpipe.doctor.published import PUBLISHED
from sgpipe.errors import ParamsError
from sgpipe.params.blocks import Blocks

HUB = "black-forest-labs/FLUX.2"
SIZES = {"dev": (8, 48, 6144, 32_223_281_152, 77_070_336), "klein-4B": (5, 20, 3072, 3_875_544_576, 16_711_680)}
"""Double and single blocks, hidden size D, parameters, and those of the LoRA below."""


def layout_of(name: str) -> Layout:
    parts = PUBLISHED[f"{HUB}-{name}"]
    return Flux2().layout(parts["transformer"], parts["vae"])


@pytest.mark.parametrize("name", SIZES)
def test_lora_at_the_real_size_is_on_the_modules_asked_for(name: str) -> None:
    """Rank 16; D + D for each projection of a double block, D + 9 D for the fused one of a single block, and 4 D + D out of it."""
    model: nn.Module = build(PUBLISHED[f"{HUB}-{name}"]["transformer"])
    double, single, width, parameters, expected = SIZES[name]
    assert sum(value.numel() for value in model.parameters()) == parameters
    targets = ("to_q", "to_k", "to_v", "to_out.0", "to_qkv_mlp_proj", "to_out")
    lora = Lora(Blocks.parse("all"), Blocks.parse("all"), targets=targets)
    weights = attach(model, target_modules(layout_of(name), lora), lora, seed=0)
    assert count(weights) == 16 * width * (double * 4 * 2 + single * (10 + 5)) == expected
    assert {each.partition(".lora_")[0] for each in weights} == {
        *(f"transformer_blocks.{index}.attn.{part}" for index in range(double) for part in targets[:4]),
        *(f"single_transformer_blocks.{index}.attn.{part}" for index in range(single) for part in targets[4:]),
    }
    assert {each for each, value in model.named_parameters() if value.requires_grad} == set(weights)


@pytest.mark.parametrize(
    ("blocks", "single", "targets", "says"),
    [
        ("all", "all", ("to_q", "to_out.0"), r"to_q: none of lora\.single_blocks all has it; .*; add to_qkv_mlp_proj"),
        ("none", "0", ("to_q", "to_out"), r"to_q: none of lora\.single_blocks \[0\] has it; .* there by to_qkv_mlp_proj"),
        ("0", "0", ("to_out.0", "to_add_out"), r"to_out\.0: none of lora\.single_blocks \[0\] has it; .* there by to_out; "),
        ("0", "0", ("to_qkv_mlp_proj", "to_out"), r"to_qkv_mlp_proj: none of lora\.blocks \[0\] has it; .* there by to_q and to_k"),
        ("0", "none", ("to_q", "to_out"), r"to_out: none of lora\.blocks \[0\] has it; .* there by to_out\.0 and to_add_out"),
        ("0", "none", ("to_q", "proj_out"), r"proj_out: none of lora\.blocks \[0\] has it; the same .* by to_out\.0 .*; drop it"),
        ("0", "48", ("to_q", "to_qkv_mlp_proj"), r"lora\.single_blocks: block 48 is out of range"),
    ],
)
def test_a_target_that_reaches_a_part_of_the_blocks_is_refused(blocks: str, single: str, targets: Any, says: str) -> None:
    with pytest.raises(ParamsError, match=says):
        target_modules(layout_of("dev"), Lora(Blocks.parse(blocks), Blocks.parse(single), targets=targets))
