"""Concepts in Z-Image's shared layers: they change nothing, stand where text stands, and their maps are those of the formulas."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import Tensor

from sgpipe.attention_maps.options import MapOptions
from sgpipe.attention_maps.scores import GroupMaps
from sgpipe.attention_maps.stream import concept_stream
from sgpipe.backbones.base import TextCondition
from sgpipe.backbones.denoiser import Denoiser
from sgpipe.backbones.families import FAMILIES
from sgpipe.errors import ParamsError
from tests.attention_maps.conftest import GRID, same
from tests.attention_maps.reference import Weights, attention, rotate, silu, sinusoid
from tests.attention_maps.test_gradients import loss_of
from tests.tiny_z_image import z_image_transformer

LAYERS, WIDTH, AXES, THETA = 4, 24, (4, 6, 6), 256.0
GROUPS: dict[str, Any] = {name: {"single_blocks": blocks} for name, blocks in (("early", "0..1"), ("late", "2..3"), ("all", "all"))}
ROWS = (40, 7)
"""Text rows of the samples: one is padded to 64 rows, the other to 32, so that their images stand apart by 32."""


@pytest.fixture(scope="module")
def built() -> Denoiser:
    model: Any = z_image_transformer(LAYERS, width=WIDTH)
    family = FAMILIES["ZImagePipeline"]
    vae = {"latent_channels": 4, "block_out_channels": [8, 16]}
    layout = family.layout({**model.config, "_class_name": "ZImageTransformer2DModel"}, vae)
    return Denoiser(family, model.requires_grad_(False), layout, {}, torch.device("cpu"))


@pytest.fixture
def denoiser(built: Denoiser) -> Denoiser:
    """A copy, which tests may change."""
    return deepcopy(built)


def given() -> tuple[tuple[Tensor, Tensor, TextCondition], Tensor]:
    """Latents of 6 × 5 tokens, which are padded to 32; times, texts and concepts."""
    draw = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 4, 2 * GRID[0], 2 * GRID[1], generator=draw)
    text = TextCondition.cat([TextCondition(torch.randn(1, rows, WIDTH, generator=draw)) for rows in ROWS])
    return (latents, torch.tensor([0.3, 0.9]), text), torch.randn(2, 3, WIDTH, generator=draw)


def run(
    denoiser: Denoiser, inputs: Any, concepts: Tensor, groups: dict[str, Any], grid: tuple[int, int] = GRID
) -> tuple[Tensor, dict[str, GroupMaps]]:
    with concept_stream(denoiser.transformer, concepts, grid, MapOptions(groups)) as stream:
        velocity = denoiser.velocity(*inputs)
    return velocity, stream.maps()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_concepts_ride_along_without_changing_a_bit(denoiser: Denoiser, dtype: torch.dtype) -> None:
    """Groups together are groups apart."""
    denoiser.transformer.to(dtype)
    inputs, concepts = given()
    velocity, together = run(denoiser, inputs, concepts, GROUPS)
    assert torch.equal(velocity, denoiser.velocity(*inputs))
    for name, blocks in GROUPS.items():
        assert same({name: together[name]}, run(denoiser, inputs, concepts, {name: blocks})[1])
        assert all(map_.dtype == torch.float32 and map_.isfinite().all() for map_ in together[name])


def test_a_samples_maps_are_those_that_it_has_alone(denoiser: Denoiser) -> None:
    inputs, concepts = given()
    _, together = run(denoiser, inputs, concepts, GROUPS)
    for row, text in enumerate(inputs[2].rows()):
        own = inputs[0][row : row + 1], inputs[1][row : row + 1], TextCondition.cat([text])
        _, alone = run(denoiser, own, concepts[row : row + 1], GROUPS)
        for name, maps in alone.items():
            for found, wanted in zip(together[name], maps, strict=True):
                torch.testing.assert_close(found[row : row + 1], wanted, atol=1e-5 * wanted.abs().max().item(), rtol=0)


def test_concepts_are_a_set(denoiser: Denoiser) -> None:
    """All stand at one position: another order gives the same maps in that order."""
    inputs, concepts = given()
    _, maps = run(denoiser, inputs, concepts, {"all": GROUPS["all"]})
    _, turned = run(denoiser, inputs, concepts[:, [2, 0, 1]], {"all": GROUPS["all"]})
    for found, wanted in zip(turned["all"], maps["all"], strict=True):
        torch.testing.assert_close(found, wanted[:, [2, 0, 1]], atol=1e-5 * wanted.abs().max().item(), rtol=0)


def test_autocast_needs_nothing_special(denoiser: Denoiser) -> None:
    """As in training: the blocks get the embedding of time in another precision than the weights'."""
    inputs, concepts = given()
    _, plain = run(denoiser, inputs, concepts, GROUPS)
    with torch.autocast("cpu", torch.bfloat16):
        expected = denoiser.velocity(*inputs)
        velocity, maps = run(denoiser, inputs, concepts, GROUPS)
    assert torch.equal(velocity, expected) and velocity.dtype == torch.float32
    for name in GROUPS:
        for found, wanted in zip(maps[name], plain[name], strict=True):
            assert 0 < (found - wanted).abs().max() < 0.1 * wanted.abs().max()


@pytest.mark.parametrize("grid", [(6, 4), (4, 8)])
def test_a_grid_that_is_not_the_images_is_refused(denoiser: Denoiser, grid: tuple[int, int]) -> None:
    """30 image tokens and 2 rows of padding behind them: neither fewer patches nor the padding are taken for the image."""
    inputs, concepts = given()
    with pytest.raises(ValueError, match=rf"grid: got {grid[0] * grid[1]} patches; valid: H × W = 30"):
        run(denoiser, inputs, concepts, GROUPS, grid)


def test_there_are_no_double_stream_blocks(denoiser: Denoiser) -> None:
    inputs, concepts = given()
    with pytest.raises(ParamsError, match=r"groups\.early: block 0, 1 is out of range; valid: none"):
        run(denoiser, inputs, concepts, {"early": "0..1"})
    with pytest.raises(ParamsError, match=r"groups\.late\.single_blocks: block 4 is out of range; valid: 0\.\.3"):
        run(denoiser, inputs, concepts, {"late": {"single_blocks": "3..4"}})


def norm(weights: Weights, name: str, x: Tensor) -> Tensor:
    return x / torch.sqrt((x**2).mean(-1, keepdim=True) + 1e-5) * weights[f"{name}.weight"]


def affine(weights: Weights, name: str, x: Tensor) -> Tensor:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


class Rows:
    """Rows of one kind in one block, in float64, which may have no modulation (`c` None); queries and keys are at no position."""

    def __init__(self, weights: Weights, block: str, rows: Tensor, c: Tensor | None) -> None:
        self.weights, self.block, self.rows = weights, block, rows
        one, zero = torch.ones(1).double(), torch.zeros(1).double()
        scale, self.gate, self.mlp_scale, self.mlp_gate = (zero, one, zero, one)
        if c is not None:
            scale, gate, self.mlp_scale, mlp_gate = affine(weights, f"{block}.adaLN_modulation.0", c).chunk(4)
            self.gate, self.mlp_gate = torch.tanh(gate), torch.tanh(mlp_gate)
        modulated = norm(weights, f"{block}.attention_norm1", rows) * (1 + scale)
        query, key, self.value = (
            (modulated @ weights[f"{block}.attention.to_{name}.weight"].T).unflatten(1, (2, -1)) for name in "qkv"
        )
        self.query, self.key = (norm(weights, f"{block}.attention.norm_{n}", x) for n, x in (("q", query), ("k", key)))

    def updated(self, output: Tensor) -> Tensor:
        weights, block = self.weights, self.block
        projected = output @ weights[f"{block}.attention.to_out.0.weight"].T
        rows = self.rows + self.gate * norm(weights, f"{block}.attention_norm2", projected)
        inner = norm(weights, f"{block}.ffn_norm1", rows) * (1 + self.mlp_scale)
        gated = silu(inner @ weights[f"{block}.feed_forward.w1.weight"].T) * (inner @ weights[f"{block}.feed_forward.w3.weight"].T)
        out = norm(weights, f"{block}.ffn_norm2", gated @ weights[f"{block}.feed_forward.w2.weight"].T)
        return rows + self.mlp_gate * out


def alone(weights: Weights, name: str, rows: Tensor, ids: Tensor, c: Tensor | None = None) -> Tensor:
    """Rows after the two refiners, which they go through among themselves."""
    for index in range(2):
        x = Rows(weights, f"{name}.{index}", rows, c)
        output = attention(rotate(x.query, ids, AXES, THETA), rotate(x.key, ids, AXES, THETA), x.value)
        rows = x.updated(output)
    return rows


def padded(rows: Tensor, pad: Tensor) -> Tensor:
    return torch.cat([rows, pad.expand(-len(rows) % 32, -1)])


def reference(denoiser: Denoiser, latents: Tensor, t: float, text: Tensor, concepts: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Raw saliency and cross-attention `[K, N]` per layer of one sample in float64: no diffusers, no batching, no hooks."""
    weights = {name: value.double() for name, value in denoiser.transformer.state_dict().items()}
    height, width = GRID
    # 1 − t, as Z-Image counts; each token is a 2 × 2 square, its channels last
    c = affine(weights, "t_embedder.mlp.2", silu(affine(weights, "t_embedder.mlp.0", sinusoid(1000 - 1000 * t))))
    tokens = latents.double().reshape(4, height, 2, width, 2).permute(1, 3, 2, 4, 0).reshape(height * width, 16)
    image = padded(affine(weights, "all_x_embedder.2-1", tokens), weights["x_pad_token"])

    def embedded(rows: Tensor) -> Tensor:
        return affine(weights, "cap_embedder.1", norm(weights, "cap_embedder.0", rows.double()))

    prompt, rows = padded(embedded(text), weights["cap_pad_token"]), embedded(concepts)
    text_ids = torch.tensor([(1 + row, 0, 0) for row in range(len(prompt))]).double()
    places = [(1 + len(prompt), row, column) for row in range(height) for column in range(width)]
    image_ids = torch.tensor(places + [(0, 0, 0)] * (len(image) - len(places))).double()
    concept_ids = text_ids[:1].expand(len(rows), -1)
    image = alone(weights, "noise_refiner", image, image_ids, c)
    prompt, rows = alone(weights, "context_refiner", prompt, text_ids), alone(weights, "context_refiner", rows, concept_ids)
    found, real = [], slice(height * width)
    for index in range(LAYERS):
        x, p, own = (Rows(weights, f"layers.{index}", each, c) for each in (image, prompt, rows))
        turned = [
            [rotate(each, ids, AXES, THETA) for each in (stream.query, stream.key)]
            for stream, ids in ((x, image_ids), (p, text_ids), (own, concept_ids))
        ]
        (image_query, image_key), (text_query, text_key), (concept_query, concept_key) = turned
        keys, values = torch.cat([image_key, text_key]), torch.cat([x.value, p.value])
        image_output, text_output = attention(image_query, keys, values), attention(text_query, keys, values)
        seen = torch.cat([concept_key, image_key[real]]), torch.cat([own.value, x.value[real]])
        concept_output = attention(concept_query, *seen)
        found.append((concept_output @ image_output[real].T, torch.einsum("nhd,khd->hkn", x.query[real], own.key).mean(0)))
        image, prompt, rows = x.updated(image_output), p.updated(text_output), own.updated(concept_output)
    return found


def test_maps_are_those_of_the_formulas(denoiser: Denoiser) -> None:
    """Every layer in float64, of both samples, in a batch and so with a mask."""
    inputs, concepts = given()
    _, maps = run(denoiser, inputs, concepts, {str(index): {"single_blocks": str(index)} for index in range(LAYERS)})
    for row, count in enumerate(ROWS):
        wanted = reference(denoiser, inputs[0][row], float(inputs[1][row]), inputs[2].states[row, :count], concepts[row])
        for index, scores in enumerate(wanted):
            for found, each in zip(maps[str(index)], scores, strict=True):
                torch.testing.assert_close(found[row].flatten(1).double(), each, atol=2e-4 * each.abs().max().item(), rtol=0)


@pytest.mark.parametrize("detach", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(denoiser: Denoiser, detach: bool) -> None:
    """Blocks run a second time in the backward pass and count once; detached maps leave the velocity's gradients as they are."""
    model: Any = denoiser.transformer
    model.add_adapter(LoraConfig(r=3, target_modules=r"layers\.\d+\.attention\.(to_q|to_k|to_v|to_out\.0)"))
    draw = torch.Generator().manual_seed(7)
    leaves = [value for name, value in model.named_parameters() if "lora_" in name]
    with torch.no_grad():
        for value in leaves:
            value.copy_(0.1 * torch.randn(value.shape, generator=draw))
    inputs, concepts = given()
    concepts.requires_grad_()

    def gradients() -> tuple[dict[str, GroupMaps], tuple[Tensor, ...]]:
        with concept_stream(model, concepts, GRID, MapOptions(GROUPS, detach=detach)) as stream:
            velocity = denoiser.velocity(*inputs)
            maps = stream.maps()
            assert maps["all"].saliency.requires_grad != detach
            given = [*leaves, concepts]
            found = torch.autograd.grad(loss_of(maps) + velocity.square().mean(), given, materialize_grads=True)
            assert same(stream.maps(), maps)
        return maps, found

    maps, expected = gradients()
    model.enable_gradient_checkpointing()
    again, found = gradients()
    assert same(again, maps)
    torch.testing.assert_close(found, expected, atol=0, rtol=0)
    assert [bool(each.abs().max() > 0) for each in found] == [True] * len(leaves) + [not detach]
