"""LoRA sits on exactly the modules asked for, on FLUX's real layout (no weights) and on a tiny one."""

import pytest
import torch
from diffusers import FluxTransformer2DModel
from msgspec.structs import replace
from torch import nn

from sgpipe.arms.config import Lora
from sgpipe.arms.lora import attach, count, target_modules
from sgpipe.backbones.base import Layout
from sgpipe.backbones.families.flux import Flux
from sgpipe.errors import ParamsError
from sgpipe.params.blocks import Blocks
from tests.training.world import World, tiny_train

VAE = {"latent_channels": 16, "block_out_channels": [128, 256, 512, 512]}
MIDDLE = Lora(Blocks.parse("7..12"))


@pytest.fixture(scope="module")
def schnell() -> tuple[FluxTransformer2DModel, Layout]:
    """FLUX.1-schnell's transformer on the meta device, and its layout."""
    with torch.device("meta"):
        model = FluxTransformer2DModel(guidance_embeds=False)
    config = {**model.config, "_class_name": "FluxTransformer2DModel"}
    return model, Flux().layout(config, VAE)


def test_the_predecessors_lora_is_2359296_numbers(schnell: tuple[FluxTransformer2DModel, Layout]) -> None:
    """Double blocks 7–12, to_q, to_k, to_v, to_out.0, rank 16: 6 blocks · 4 projections · 16 · (3072 + 3072)."""
    model, layout = schnell
    weights = attach(model, target_modules(layout, MIDDLE), MIDDLE, seed=0)
    assert count(weights) == 2_359_296
    wanted = {
        f"transformer_blocks.{index}.attn.{part}.lora_{side}.default.weight"
        for index in range(7, 13)
        for part in ("to_q", "to_k", "to_v", "to_out.0")
        for side in "AB"
    }
    assert set(weights) == wanted
    assert {name for name, value in model.named_parameters() if value.requires_grad} == wanted


@pytest.mark.parametrize(
    "lora, names",
    [
        (Lora(Blocks.parse("none")), []),
        (Lora(Blocks.parse("0"), targets=("to_q", "add_q_proj")), ["attn.to_q", "attn.add_q_proj"]),
        (Lora(Blocks.parse("18"), targets=("to_add_out",)), ["attn.to_add_out"]),
    ],
)
def test_blocks_and_targets_name_modules(schnell: tuple[FluxTransformer2DModel, Layout], lora: Lora, names: list[str]) -> None:
    found = target_modules(schnell[1], lora)
    block = lora.blocks.indices[0] if lora.blocks.indices else 0
    assert found == [f"transformer_blocks.{block}.{name}" for name in names]


def test_single_blocks_have_projections_of_their_own(schnell: tuple[FluxTransformer2DModel, Layout]) -> None:
    lora = replace(MIDDLE, blocks=Blocks(()), single_blocks=Blocks.parse("[0,37]"), targets=("to_q", "proj_out"))
    assert target_modules(schnell[1], lora) == [
        f"single_transformer_blocks.{index}.{part}" for index in (0, 37) for part in ("attn.to_q", "proj_out")
    ]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"blocks": Blocks.parse("7..19")}, r"lora\.blocks: block 19 is out of range; valid: 0\.\.18"),
        ({"single_blocks": Blocks.parse("38")}, r"lora\.single_blocks: block 38 is out of range; valid: 0\.\.37"),
        ({"targets": ("proj_out",)}, r"lora\.targets: proj_out: none of them is in lora\.blocks"),
        (
            {"blocks": Blocks(()), "single_blocks": Blocks.parse("0"), "targets": ("to_out.0",)},
            r"none of them is in lora\.single_blocks; valid there: to_q, to_k, to_v, proj_out",
        ),
    ],
)
def test_what_the_model_lacks_is_refused(schnell: tuple[FluxTransformer2DModel, Layout], changes: dict, message: str) -> None:
    with pytest.raises(ParamsError, match=message):
        target_modules(schnell[1], replace(MIDDLE, **changes))


def test_weights_depend_on_seed_and_name_alone(world: World) -> None:
    """Another block beside a block does not change its start; up-projections start at nothing."""

    def weights(blocks: str, seed: int = 0) -> dict[str, nn.Parameter]:
        model = world.model(tiny_train(seed=seed), lora=replace(MIDDLE, blocks=Blocks.parse(blocks)))
        return model.adapter.parameters()["lora"]

    few, many = weights("1"), weights("0..2")
    for name, weight in few.items():
        assert torch.equal(weight, many[name])
        assert bool(weight.any()) == (".lora_A." in name)
    other = weights("1", seed=1)
    assert not torch.equal(next(iter(other.values())), next(iter(few.values())))
