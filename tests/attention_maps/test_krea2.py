"""Concepts in Krea 2's blocks of gated attention: they change nothing, and their maps are those of the formulas."""

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
from sgpipe.backbones.families.flux import pack
from sgpipe.errors import ParamsError
from tests.attention_maps.conftest import GRID, same
from tests.attention_maps.reference import Weights, attention, gelu, rotate, silu
from tests.attention_maps.test_gradients import loss_of
from tests.tiny_krea2 import LAYERS, WIDTH, tiny_transformer

BLOCKS, AXES, THETA, HEADS, SHARED = 4, (4, 6, 6), 1000.0, 4, 2
"""`SHARED` heads of queries for each one of keys and values."""
GROUPS = {name: {"single_blocks": blocks} for name, blocks in {"early": "0..1", "late": "2..3", "all": "all"}.items()}
VAE = {"z_dim": 4, "temperal_downsample": [False], "latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}


@pytest.fixture(scope="module")
def built() -> Denoiser:
    """4 heads of 16; every parameter random, norms, tables and biases included."""
    model = tiny_transformer(BLOCKS).eval().requires_grad_(False)
    family = FAMILIES["Krea2Pipeline"]
    layout = family.layout({**model.config, "_class_name": "Krea2Transformer2DModel"}, VAE)
    return Denoiser(family, model, layout, {}, torch.device("cpu"))


@pytest.fixture
def denoiser(built: Denoiser) -> Denoiser:
    """A copy, which tests may change."""
    return deepcopy(built)


def given(size: int = 2) -> tuple[tuple[Tensor, Tensor, TextCondition], Tensor]:
    """Latents of 6 × 5 tokens, times and texts of 7, 4, … rows; and concepts."""
    draw = torch.Generator().manual_seed(1)
    latents = torch.randn(size, 4, 2 * GRID[0], 2 * GRID[1], generator=draw)
    rows = [TextCondition(torch.randn(1, 7 - 3 * i, LAYERS * WIDTH, generator=draw)) for i in range(size)]
    return (latents, torch.linspace(0.3, 0.9, size), TextCondition.cat(rows)), torch.randn(size, 3, LAYERS * WIDTH, generator=draw)


def run(
    denoiser: Denoiser, inputs: Any, concepts: Tensor, groups: dict[str, Any] = GROUPS, grid: tuple[int, int] = GRID
) -> tuple[Tensor, dict[str, GroupMaps]]:
    with concept_stream(denoiser.transformer, concepts, grid, MapOptions(groups)) as stream:
        velocity = denoiser.velocity(*inputs)
    return velocity, stream.maps()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_concepts_ride_along_without_changing_a_bit(denoiser: Denoiser, dtype: torch.dtype) -> None:
    """Groups together are groups apart; norms stay in float32 beside bfloat16 weights, as the class loads them."""
    for name, module in denoiser.transformer.named_modules():
        if not any(name.rpartition(".")[2] == kept for kept in denoiser.transformer._keep_in_fp32_modules):  # type: ignore[union-attr]
            for own in module.parameters(recurse=False):
                own.data = own.data.to(dtype)
    inputs, concepts = given()
    velocity, together = run(denoiser, inputs, concepts.to(dtype))
    assert velocity.dtype == dtype and torch.equal(velocity, denoiser.velocity(*inputs))
    for name, group in GROUPS.items():
        assert same({name: together[name]}, run(denoiser, inputs, concepts.to(dtype), {name: group})[1])
        assert all(torch.isfinite(each).all() and each.dtype == torch.float32 for each in together[name])


def test_a_sample_has_the_maps_that_it_has_alone(denoiser: Denoiser) -> None:
    inputs, concepts = given()
    _, together = run(denoiser, inputs, concepts)
    for row, text in enumerate(inputs[2].rows()):
        own = inputs[0][row : row + 1], inputs[1][row : row + 1], TextCondition.cat([text])
        _, alone = run(denoiser, own, concepts[row : row + 1])
        for name, maps in alone.items():
            for found, wanted in zip(together[name], maps, strict=True):
                torch.testing.assert_close(found[row : row + 1], wanted, atol=1e-5 * wanted.abs().max().item(), rtol=0)


def test_concepts_are_a_set(denoiser: Denoiser) -> None:
    inputs, concepts = given()
    _, maps = run(denoiser, inputs, concepts)
    _, turned = run(denoiser, inputs, concepts[:, [2, 0, 1]])
    for found, wanted in zip(turned["all"], maps["all"], strict=True):
        torch.testing.assert_close(found, wanted[:, [2, 0, 1]], atol=1e-5 * wanted.abs().max().item(), rtol=0)


def linear(weights: Weights, name: str, x: Tensor) -> Tensor:
    bias = weights.get(f"{name}.bias")
    return x @ weights[f"{name}.weight"].T + (0 if bias is None else bias)


def norm(weights: Weights, name: str, x: Tensor) -> Tensor:
    """A root of the mean square, and a gain of one more than the weight."""
    return x / torch.sqrt((x**2).mean(-1, keepdim=True) + 1e-5) * (1 + weights[f"{name}.weight"])


def mlp(weights: Weights, name: str, x: Tensor) -> Tensor:
    return linear(weights, f"{name}.down", silu(linear(weights, f"{name}.gate", x)) * linear(weights, f"{name}.up", x))


def sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


class Rows:
    """Rows of one kind in one block, whose weights are those of all kinds."""

    def __init__(self, weights: Weights, block: str, heads: tuple[int, int], rows: Tensor, modulation: Tensor) -> None:
        self.weights, self.block, self.rows, attn = weights, block, rows, f"{block}.attn"
        self.modulation = modulation
        inner = (1 + modulation[0]) * norm(weights, f"{block}.norm1", rows) + modulation[1]
        query, key, value = (
            linear(weights, f"{attn}.{name}", inner).unflatten(1, (count, -1))
            for name, count in zip(("to_q", "to_k", "to_v"), (heads[0], heads[1], heads[1]), strict=True)
        )
        serves = [head // (heads[0] // heads[1]) for head in range(heads[0])]
        self.query, self.key = norm(weights, f"{attn}.norm_q", query), norm(weights, f"{attn}.norm_k", key)[:, serves]
        self.value, self.gate = value[:, serves], sigmoid(linear(weights, f"{attn}.to_gate", inner))

    def updated(self, gated: Tensor) -> Tensor:
        m = self.modulation
        rows = self.rows + m[2] * linear(self.weights, f"{self.block}.attn.to_out.0", gated)
        inner = (1 + m[3]) * norm(self.weights, f"{self.block}.norm2", rows) + m[4]
        return rows + m[5] * mlp(self.weights, f"{self.block}.ff", inner)


def fused(weights: Weights, rows: Tensor) -> Tensor:
    """Text `[T, layers · width]` as rows of the first block: attention over each token's layers, their sum, attention over text."""
    plain = torch.zeros(6, 1).double()
    plain[[2, 5]] = 1

    def within(block: str, x: Tensor) -> Tensor:
        made = Rows(weights, f"text_fusion.{block}", (2, 2), x, plain)
        return made.updated(attention(made.query, made.key, made.value) * made.gate)

    tokens = rows.double().unflatten(1, (LAYERS, WIDTH))
    for index in range(2):
        tokens = torch.stack([within(f"layerwise_blocks.{index}", token) for token in tokens])
    made = torch.einsum("tlw,l->tw", tokens, weights["text_fusion.projector.weight"][0])
    for index in range(2):
        made = within(f"refiner_blocks.{index}", made)
    return linear(weights, "txt_in.linear_2", gelu(linear(weights, "txt_in.linear_1", norm(weights, "txt_in.norm", made))))


def modulation_of(weights: Weights, t: float) -> Tensor:
    """`[6 D]` of a time, which blocks add their tables to; angles in float32, as the model makes them."""
    half = weights["time_embed.linear_1.weight"].shape[1] // 2
    frequencies = torch.exp(-torch.log(torch.tensor(1e4)) * torch.arange(half, dtype=torch.float32) / half)
    angles = (torch.tensor(t, dtype=torch.float32) * 1e3 * frequencies).double()
    made = linear(weights, "time_embed.linear_1", torch.cat([torch.cos(angles), torch.sin(angles)]))
    return linear(weights, "time_mod_proj", gelu(linear(weights, "time_embed.linear_2", gelu(made))))


def reference(denoiser: Denoiser, latents: Tensor, t: float, text: Tensor, concepts: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Raw saliency and cross-attention `[K, N]` per block of one sample in float64: no diffusers, no batching, no hooks."""
    weights = {name: value.double() for name, value in denoiser.transformer.state_dict().items()}
    shared = modulation_of(weights, t).unflatten(0, (6, -1))
    image, prompt, rows = linear(weights, "img_in", pack(latents)[0].double()), fused(weights, text), fused(weights, concepts)
    ids = torch.tensor([(0, row, column) for row in range(GRID[0]) for column in range(GRID[1])]).double()
    found = []
    for index in range(BLOCKS):
        block = f"transformer_blocks.{index}"
        modulation = shared + weights[f"{block}.scale_shift_table"]
        x, p, c = (Rows(weights, block, (HEADS, HEADS // SHARED), each, modulation) for each in (image, prompt, rows))
        image_query, image_key = rotate(x.query, ids, AXES, THETA), rotate(x.key, ids, AXES, THETA)
        keys, values = torch.cat([p.key, image_key]), torch.cat([p.value, x.value])
        image_output = attention(image_query, keys, values) * x.gate
        concept_output = attention(c.query, torch.cat([c.key, image_key]), torch.cat([c.value, x.value])) * c.gate
        found.append((concept_output @ image_output.T, torch.einsum("nhd,khd->hkn", x.query, c.key).mean(0)))
        image, prompt = x.updated(image_output), p.updated(attention(p.query, keys, values) * p.gate)
        rows = c.updated(concept_output)
    return found


def test_maps_are_those_of_the_formulas(denoiser: Denoiser) -> None:
    """Every block in float64; of the second sample, whose text is the shorter, in a batch and so with a mask."""
    inputs, concepts = given()
    _, maps = run(denoiser, inputs, concepts, {str(index): {"single_blocks": str(index)} for index in range(BLOCKS)})
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
    model.add_adapter(LoraConfig(r=3, target_modules=r"transformer_blocks\.\d+\.attn\.(to_q|to_k|to_v|to_gate|to_out\.0)"))
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
            wanted = loss_of(maps) + velocity.square().mean()
            found = torch.autograd.grad(wanted, [concepts, *leaves], materialize_grads=True)
            assert same(stream.maps(), maps)
        return maps, found

    maps, expected = gradients()
    model.enable_gradient_checkpointing()
    again, found = gradients()
    assert same(again, maps)
    torch.testing.assert_close(found, expected, atol=0, rtol=0)
    assert all(each.abs().max() > 0 for each in found[detach:]) and bool(found[0].any()) != detach


def test_fused_projections_give_the_same_maps(denoiser: Denoiser) -> None:
    """They are modules beside those that run, which the hooks stay on."""
    inputs, concepts = given()
    _, wanted = run(denoiser, inputs, concepts)
    denoiser.transformer.fuse_qkv_projections()  # type: ignore[operator]
    assert denoiser.transformer.transformer_blocks[0].attn.fused_projections  # type: ignore[index, union-attr]
    assert same(run(denoiser, inputs, concepts)[1], wanted)


@pytest.mark.parametrize("grid", [(5, 5), (6, 6), (31, 1), (1, 1)])
def test_a_grid_that_is_not_the_images_is_refused(denoiser: Denoiser, grid: tuple[int, int]) -> None:
    """A block is not told where text ends: rows of text would pass for the image's."""
    inputs, concepts = given()
    with pytest.raises(ValueError, match=rf"grid: got one of {grid[0] * grid[1]} patches; valid: H × W = 30, "):
        run(denoiser, inputs, concepts, grid=grid)


def test_double_stream_blocks_are_refused(denoiser: Denoiser) -> None:
    inputs, concepts = given()
    says = r"groups\.early: block 0, 1 is out of range; .*; Krea 2 has single-stream blocks alone: write {single_blocks: …}"
    with pytest.raises(ParamsError, match=says):
        run(denoiser, inputs, concepts, {"early": "0..1"})
