"""LoRA sits on exactly the modules asked for, on FLUX's real layout (no weights) and on a tiny one."""

import json
from pathlib import Path
from typing import get_args

import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from msgspec.structs import replace
from safetensors import safe_open
from torch import nn

from sgpipe.arms.adapter import ABOUT, build, save_adapter
from sgpipe.arms.config import Lora, Target
from sgpipe.arms.lora import _FUNCTIONS, LORA_FILE, attach, count, target_modules
from sgpipe.backbones.base import Layout
from sgpipe.backbones.families import open_text_encoders
from sgpipe.backbones.families.flux import Flux
from sgpipe.backbones.rectified_flow import noise
from sgpipe.errors import ParamsError
from sgpipe.params.blocks import Blocks
from sgpipe.training.fit import _modules
from tests.tiny import SIDE
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
        (
            {"targets": ("proj_out",)},
            r"lora\.targets: proj_out: none of lora\.blocks \[7\.\.12\] has it; .* by to_out\.0 and to_add_out; .* drop it",
        ),
        (
            {"blocks": Blocks(()), "single_blocks": Blocks.parse("0"), "targets": ("to_out.0",)},
            r"to_out\.0: none of lora\.single_blocks \[0\] has it; .* by proj_out; valid there: to_q, to_k, to_v, proj_out; drop",
        ),
        (
            {"single_blocks": Blocks.parse("0..3")},
            r"to_out\.0: none of lora\.single_blocks \[0\.\.3\] has it; .* by proj_out; .* add proj_out, or name other blocks",
        ),
        (
            {"single_blocks": Blocks.parse("0"), "targets": ("to_q", "proj_out")},
            r"proj_out: none of lora\.blocks \[7\.\.12\] has it; .* by to_out\.0 and to_add_out; .* add to_out\.0",
        ),
        (
            {"single_blocks": Blocks.parse("0"), "targets": ("add_k_proj",)},
            r"add_k_proj: none of lora\.single_blocks \[0\] has it; the same is done there by to_k; .* add to_k",
        ),
    ],
)
def test_what_the_model_lacks_is_refused(schnell: tuple[FluxTransformer2DModel, Layout], changes: dict, message: str) -> None:
    with pytest.raises(ParamsError, match=message):
        target_modules(schnell[1], replace(MIDDLE, **changes))


def test_one_function_may_have_a_name_in_each_stream(schnell: tuple[FluxTransformer2DModel, Layout]) -> None:
    """What is asked for is what is matched, module by module."""
    with torch.device("meta"):
        model = FluxTransformer2DModel(num_layers=19, num_single_layers=1)
    layout = schnell[1]
    lora = Lora(Blocks.parse("18"), Blocks.parse("0"), ("to_out.0", "to_add_out", "proj_out", "to_v", "add_v_proj"))
    names = target_modules(layout, lora)
    of_double = [f"transformer_blocks.18.attn.{part}" for part in ("to_out.0", "to_add_out", "to_v", "add_v_proj")]
    assert names == [*of_double, "single_transformer_blocks.0.proj_out", "single_transformer_blocks.0.attn.to_v"]
    assert {name.partition(".lora_")[0] for name in attach(model, names, lora, seed=0)} == set(names)


def test_every_target_has_a_function() -> None:
    assert set(get_args(Target)) == set(_FUNCTIONS)


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


def test_lora_of_both_streams_is_written_and_printed_as_matched_and_acts_in_the_pipeline(world: World, tmp_path: Path) -> None:
    lora = Lora(Blocks.parse("1..2"), Blocks.parse("0"), ("to_q", "to_out.0", "proj_out"), rank=4, alpha=8.0)
    arm = world.arm(tiny_train(), name="text_only", lora=lora)
    model = build(world.denoiser(), world.backbone, arm, 1.0)
    weights = model.adapter.parameters()["lora"]
    assert sorted(_modules(weights)) == [
        "single_transformer_blocks.{0}.attn.to_q", "single_transformer_blocks.{0}.proj_out",
        "transformer_blocks.{1,2}.attn.to_out.0", "transformer_blocks.{1,2}.attn.to_q",
    ]  # fmt: skip
    latents, t = noise([1, 2], model.denoiser.layout.latent_shape(SIDE)), torch.tensor([0.4, 0.8])
    text = open_text_encoders(world.backbone, torch.device("cpu")).prompts(["a photo of dog", "a photo of cat on table"])
    with torch.no_grad():
        base = model.velocity(latents, t, text)
        for name, weight in weights.items():
            if ".lora_B." in name:
                weight.copy_(0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(len(name))))
        wanted = model.velocity(latents, t, text)
    save_adapter(tmp_path, model, arm, world.backbone, {})
    assert json.loads((tmp_path / ABOUT).read_text())["lora_modules"] == 6
    with safe_open(tmp_path / LORA_FILE, "pt") as file:
        about = json.loads(file.metadata()["lora_adapter_metadata"])
    assert about["transformer.target_modules"] == sorted(target_modules(model.denoiser.layout, lora))
    pipeline = FluxPipeline.from_pretrained(world.backbone.model)
    pipeline.load_lora_weights(tmp_path)
    with torch.no_grad():
        found = Flux().velocity(pipeline.transformer, latents, t, text, None)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)
    assert (wanted - base).abs().max() > 1e-2
