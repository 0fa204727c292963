"""Concepts in Qwen-Image's blocks: they change nothing, stand where text stands, and their maps are those of the formulas."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from diffusers import QwenImageTransformer2DModel
from peft import LoraConfig
from torch import Tensor

from sgpipe.attention_maps.options import MapOptions
from sgpipe.attention_maps.scores import GroupMaps
from sgpipe.attention_maps.stream import concept_stream
from sgpipe.backbones.base import TextCondition
from sgpipe.backbones.denoiser import Denoiser
from sgpipe.backbones.families import FAMILIES
from sgpipe.backbones.families.flux import pack
from tests.attention_maps.conftest import GRID, same
from tests.attention_maps.reference import Stream, attention, embedded, linear, rms_norm, rotate, sinusoid
from tests.attention_maps.test_gradients import loss_of

BLOCKS, WIDTH, AXES = 4, 24, (4, 6, 6)
GROUPS = {"early": "0..1", "late": "2..3", "all": "all"}
VAE = {"z_dim": 4, "temperal_downsample": [False], "latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}
RENAMED = {"txt_mod.1": "norm1_context.linear", "img_mod.1": "norm1.linear", "txt_mlp": "ff_context", "img_mlp": "ff"}
"""Modules of a block, and what FLUX calls those that compute the same."""


@pytest.fixture(scope="module")
def built() -> Denoiser:
    """2 heads of 16; every parameter random, norms and biases included."""
    model = QwenImageTransformer2DModel(
        in_channels=16, out_channels=4, num_layers=BLOCKS, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=WIDTH,
        axes_dims_rope=AXES,
    ).eval()  # fmt: skip
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(0.15 * torch.randn(value.shape, generator=draw) + (".norm_" in name or "txt_norm" in name))
    family = FAMILIES["QwenImagePipeline"]
    layout = family.layout({**model.config, "_class_name": "QwenImageTransformer2DModel"}, VAE)
    return Denoiser(family, model.requires_grad_(False), layout, {}, torch.device("cpu"))


@pytest.fixture
def denoiser(built: Denoiser) -> Denoiser:
    """A copy, which tests may change."""
    return deepcopy(built)


def given(size: int = 2) -> tuple[tuple[Tensor, Tensor, TextCondition], Tensor]:
    """Latents of 6 × 5 tokens, times and texts of 7, 4, … rows; and concepts."""
    draw = torch.Generator().manual_seed(1)
    latents = torch.randn(size, 4, 2 * GRID[0], 2 * GRID[1], generator=draw)
    rows = [TextCondition(torch.randn(1, 7 - 3 * i, WIDTH, generator=draw)) for i in range(size)]
    return (latents, torch.linspace(0.3, 0.9, size), TextCondition.cat(rows)), torch.randn(size, 3, WIDTH, generator=draw)


def run(
    denoiser: Denoiser, inputs: Any, concepts: Tensor, groups: dict[str, str], **options: Any
) -> tuple[Tensor, dict[str, GroupMaps]]:
    with concept_stream(denoiser.transformer, concepts, GRID, MapOptions(groups, **options)) as stream:
        velocity = denoiser.velocity(*inputs)
    return velocity, stream.maps()


def test_concepts_ride_along_without_changing_a_bit(denoiser: Denoiser) -> None:
    """Groups together are groups apart, and a sample's maps are those that it has alone."""
    inputs, concepts = given()
    velocity, together = run(denoiser, inputs, concepts, GROUPS)
    assert torch.equal(velocity, denoiser.velocity(*inputs))
    for name, blocks in GROUPS.items():
        assert same({name: together[name]}, run(denoiser, inputs, concepts, {name: blocks})[1])
    for row, text in enumerate(inputs[2].rows()):
        own = inputs[0][row : row + 1], inputs[1][row : row + 1], TextCondition.cat([text])
        _, alone = run(denoiser, own, concepts[row : row + 1], GROUPS)
        for name, maps in alone.items():
            for found, wanted in zip(together[name], maps, strict=True):
                torch.testing.assert_close(found[row : row + 1], wanted, atol=1e-5 * wanted.abs().max().item(), rtol=0)


def test_concepts_are_a_set(denoiser: Denoiser) -> None:
    """All stand at one position: another order gives the same maps in that order."""
    inputs, concepts = given()
    _, maps = run(denoiser, inputs, concepts, {"all": "all"})
    _, turned = run(denoiser, inputs, concepts[:, [2, 0, 1]], {"all": "all"})
    for found, wanted in zip(turned["all"], maps["all"], strict=True):
        torch.testing.assert_close(found, wanted[:, [2, 0, 1]], atol=1e-5 * wanted.abs().max().item(), rtol=0)


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    weights = {}
    for name, value in state.items():
        for own, other in RENAMED.items():
            name = name.replace(f".{own}.", f".{other}.")
        weights[name] = value.double()
    return weights


def positions(grid: tuple[int, int], rows: int) -> tuple[Tensor, Tensor]:
    """Frame, row and column of image tokens, centred on 0; and of text rows, from max(h, w)//2 on, on all axes."""
    height, width = grid
    image = [(0, row - (height - height // 2), column - (width - width // 2)) for row in range(height) for column in range(width)]
    text = [(max(height, width) // 2 + row,) * 3 for row in range(rows)]
    return torch.tensor(image).double(), torch.tensor(text).double()


def reference(denoiser: Denoiser, latents: Tensor, t: float, text: Tensor, concepts: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Raw saliency and cross-attention `[K, N]` per block of one sample in float64: no diffusers, no batching, no hooks."""
    weights = renamed(denoiser.transformer.state_dict())

    def texts(rows: Tensor) -> Tensor:
        return linear(weights, "txt_in", rms_norm(rows.double(), weights["txt_norm.weight"]))

    conditioning = embedded(weights, "timestep_embedder", sinusoid(1000 * t))
    image, prompt, rows = linear(weights, "img_in", pack(latents)[0].double()), texts(text), texts(concepts)
    image_ids, text_ids = positions(GRID, len(text))
    concept_ids = text_ids[:1].expand(len(rows), -1)
    found = []
    for index in range(BLOCKS):
        x, p, c = (
            Stream(weights, f"transformer_blocks.{index}", side, 2, each, conditioning)
            for side, each in ((False, image), (True, prompt), (True, rows))
        )
        image_query, image_key = rotate(x.query, image_ids, AXES), rotate(x.key, image_ids, AXES)
        text_query, text_key = rotate(p.query, text_ids, AXES), rotate(p.key, text_ids, AXES)
        concept_query, concept_key = rotate(c.query, concept_ids, AXES), rotate(c.key, concept_ids, AXES)
        keys, values = torch.cat([text_key, image_key]), torch.cat([p.value, x.value])
        image_output, text_output = attention(image_query, keys, values), attention(text_query, keys, values)
        concept_output = attention(concept_query, torch.cat([concept_key, image_key]), torch.cat([c.value, x.value]))
        found.append((concept_output @ image_output.T, torch.einsum("nhd,khd->hkn", x.query, c.key).mean(0)))
        image, prompt, rows = x.updated(image_output), p.updated(text_output), c.updated(concept_output)
    return found


def test_maps_are_those_of_the_formulas(denoiser: Denoiser) -> None:
    """Every block in float64; of the second sample, whose text is the shorter, in a batch and so with a mask."""
    inputs, concepts = given()
    _, maps = run(denoiser, inputs, concepts, {str(index): str(index) for index in range(BLOCKS)})
    own = int(inputs[2].attended[1].sum())
    assert own == 4
    wanted = reference(denoiser, inputs[0][1:], float(inputs[1][1]), inputs[2].states[1, :own], concepts[1])
    for index, scores in enumerate(wanted):
        for found, each in zip(maps[str(index)], scores, strict=True):
            torch.testing.assert_close(found[1].flatten(1).double(), each, atol=2e-4 * each.abs().max().item(), rtol=0)


@pytest.mark.parametrize("detach", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(denoiser: Denoiser, detach: bool) -> None:
    """Blocks run a second time in the backward pass and count once; detached maps leave the velocity's gradients as they are."""
    model: Any = denoiser.transformer
    model.add_adapter(
        LoraConfig(r=3, target_modules=r"transformer_blocks\.\d+\.attn\.(to_q|to_k|to_v|to_out\.0|add_k_proj|add_v_proj)")
    )
    draw = torch.Generator().manual_seed(7)
    leaves = [value for name, value in model.named_parameters() if "lora_" in name]
    with torch.no_grad():
        for value in leaves:
            value.copy_(0.1 * torch.randn(value.shape, generator=draw))
    inputs, concepts = given()

    def gradients() -> tuple[dict[str, GroupMaps], tuple[Tensor, ...]]:
        with concept_stream(model, concepts, GRID, MapOptions(GROUPS, detach=detach)) as stream:
            velocity = denoiser.velocity(*inputs)
            maps = stream.maps()
            assert maps["all"].saliency.requires_grad != detach
            found = torch.autograd.grad(loss_of(maps) + velocity.square().mean(), leaves, materialize_grads=True)
            assert same(stream.maps(), maps)
        return maps, found

    maps, expected = gradients()
    model.enable_gradient_checkpointing()
    again, found = gradients()
    assert same(again, maps)
    torch.testing.assert_close(found, expected, atol=0, rtol=0)
    assert all(each.abs().max() > 0 for each in found)
