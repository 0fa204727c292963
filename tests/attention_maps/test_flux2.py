"""Concepts in FLUX.2's double-stream blocks, of one modulation for all: nothing changes, and the maps are those of formulas."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from diffusers import Flux2Transformer2DModel
from torch import Tensor

from sgpipe.attention_maps.options import MapOptions
from sgpipe.attention_maps.scores import GroupMaps
from sgpipe.attention_maps.stream import concept_stream
from sgpipe.backbones.families.flux2 import image_ids, text_ids
from sgpipe.errors import ParamsError
from tests.attention_maps.conftest import CHANNELS, CONCEPTS, GRID, TEXT, WIDTH_T5, close, same, with_lora
from tests.attention_maps.reference import attention, layer_norm, rms_norm, rotate, silu, sinusoid
from tests.attention_maps.test_gradients import loss_of

BLOCKS, AXES = 3, (4, 4, 4, 4)
GROUPS = {"early": "0..1", "last": "2", "all": "all"}


@pytest.fixture(scope="module")
def built() -> Flux2Transformer2DModel:
    """Like FLUX.2-dev, 2 heads of 16; every parameter random."""
    model = Flux2Transformer2DModel(
        in_channels=CHANNELS,
        num_layers=BLOCKS,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH_T5,
        axes_dims_rope=AXES,
    )
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(0.15 * torch.randn(value.shape, generator=draw) + (".norm_" in name))
    return model.eval()


@pytest.fixture
def model(built: Flux2Transformer2DModel) -> Flux2Transformer2DModel:
    """A copy, which tests may change."""
    return deepcopy(built)


def batch(size: int) -> tuple[dict[str, Tensor], Tensor]:
    """Arguments of a forward for `size` samples, each at a time of its own, and their concepts."""
    draw = torch.Generator().manual_seed(1)
    arguments = {
        "hidden_states": torch.randn(size, GRID[0] * GRID[1], CHANNELS, generator=draw),
        "encoder_hidden_states": torch.randn(size, TEXT, WIDTH_T5, generator=draw),
        "timestep": torch.linspace(0.3, 0.9, size),
        "guidance": torch.full((size,), 4.0),
        "img_ids": image_ids(*GRID),
        "txt_ids": text_ids(TEXT, 0),
    }
    return arguments, torch.randn(size, CONCEPTS, WIDTH_T5, generator=draw)


def run(
    model: Any, arguments: dict[str, Tensor], concepts: Tensor, groups: dict[str, str] = GROUPS
) -> tuple[Tensor, dict[str, GroupMaps]]:
    with concept_stream(model, concepts, GRID, MapOptions(groups)) as stream:
        velocity = model(**arguments).sample
    return velocity, stream.maps()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_the_velocity_is_the_same_to_the_bit(model: Flux2Transformer2DModel, dtype: torch.dtype) -> None:
    model.to(dtype)
    arguments, concepts = batch(3)
    arguments = {name: value if name.endswith("_ids") else value.to(dtype) for name, value in arguments.items()}
    riding, maps = run(model, arguments, concepts.to(dtype))
    assert riding.dtype == dtype and torch.equal(riding, model(**arguments).sample)
    assert all(map_.dtype == torch.float32 for group in maps.values() for map_ in group)


@torch.no_grad()
def test_groups_and_samples_apart_give_what_they_give_together(model: Flux2Transformer2DModel) -> None:
    arguments, concepts = batch(3)
    _, together = run(model, arguments, concepts)
    apart: dict[str, GroupMaps] = {}
    for name, blocks in GROUPS.items():
        apart |= run(model, arguments, concepts, {name: blocks})[1]
    assert same(together, apart)
    mean = GroupMaps(*((2 * a + b) / 3 for a, b in zip(together["early"], together["last"], strict=True)))
    close({"all": mean}, {"all": together["all"]}, atol=1e-5, rtol=1e-5)
    for row in range(3):
        own = {name: value if name.endswith("_ids") else value[row : row + 1] for name, value in arguments.items()}
        expected = {name: GroupMaps(*(each[row : row + 1] for each in maps)) for name, maps in together.items()}
        close(run(model, own, concepts[row : row + 1])[1], expected, atol=1e-5, rtol=1e-5)
    turned = run(model, arguments, concepts[:, [2, 0, 1]])[1]
    permuted = {name: GroupMaps(*(each[:, [2, 0, 1]] for each in maps)) for name, maps in together.items()}
    close(turned, permuted, atol=1e-5, rtol=1e-5)


class Rows:
    """Rows of one kind in one block, in float64: projections of the modulated rows, and their update."""

    def __init__(self, weights: dict[str, Tensor], block: str, text: bool, rows: Tensor, modulation: Tensor) -> None:
        self.weights, self.rows = weights, rows
        self.ff, self.out = (
            (f"{block}.ff_context", f"{block}.attn.to_add_out") if text else (f"{block}.ff", f"{block}.attn.to_out.0")
        )
        shift, scale, self.gate, self.mlp_shift, self.mlp_scale, self.mlp_gate = modulation.chunk(6)
        modulated = (1 + scale) * layer_norm(rows) + shift
        names = ("add_q_proj", "add_k_proj", "add_v_proj") if text else ("to_q", "to_k", "to_v")
        query, key, self.value = ((modulated @ weights[f"{block}.attn.{name}.weight"].T).unflatten(1, (2, -1)) for name in names)
        added = "added_" if text else ""
        self.query = rms_norm(query, weights[f"{block}.attn.norm_{added}q.weight"])
        self.key = rms_norm(key, weights[f"{block}.attn.norm_{added}k.weight"])

    def updated(self, output: Tensor) -> Tensor:
        rows = self.rows + self.gate * (output @ self.weights[f"{self.out}.weight"].T)
        inner = ((1 + self.mlp_scale) * layer_norm(rows) + self.mlp_shift) @ self.weights[f"{self.ff}.linear_in.weight"].T
        gated, linear = inner.chunk(2, dim=-1)
        return rows + self.mlp_gate * ((silu(gated) * linear) @ self.weights[f"{self.ff}.linear_out.weight"].T)


def reference(state: dict[str, Tensor], given: dict[str, Tensor], concepts: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Raw saliency and cross-attention `[K, N]` per double block, of one sample (arguments without a batch axis)."""
    weights = {name: value.double() for name, value in state.items()}

    def embedded(name: str, value: float) -> Tensor:
        first, second = (weights[f"time_guidance_embed.{name}.linear_{n}.weight"] for n in (1, 2))
        return silu(sinusoid(1000 * value) @ first.T) @ second.T

    conditioning = embedded("timestep_embedder", float(given["timestep"])) + embedded("guidance_embedder", float(given["guidance"]))
    of_image, of_text = (
        silu(conditioning) @ weights[f"double_stream_modulation_{name}.linear.weight"].T for name in ("img", "txt")
    )
    image = given["hidden_states"].double() @ weights["x_embedder.weight"].T
    text, rows = (each.double() @ weights["context_embedder.weight"].T for each in (given["encoder_hidden_states"], concepts))
    found = []
    for index in range(BLOCKS):
        block = f"transformer_blocks.{index}"
        x = Rows(weights, block, False, image, of_image)
        p, c = (Rows(weights, block, True, each, of_text) for each in (text, rows))
        turned = {name: rotate(getattr(x, name), given["img_ids"].double(), AXES, 2000.0) for name in ("query", "key")}
        said = {name: rotate(getattr(p, name), given["txt_ids"].double(), AXES, 2000.0) for name in ("query", "key")}
        keys, values = torch.cat([said["key"], turned["key"]]), torch.cat([p.value, x.value])
        image_output = attention(turned["query"], keys, values)
        concept_output = attention(c.query, torch.cat([c.key, turned["key"]]), torch.cat([c.value, x.value]))
        found.append((concept_output @ image_output.T, torch.einsum("nhd,khd->hkn", x.query, c.key).mean(0)))
        text = p.updated(attention(said["query"], keys, values))
        image, rows = x.updated(image_output), c.updated(concept_output)
    return found


@torch.no_grad()
def test_maps_are_those_of_the_formulas(model: Flux2Transformer2DModel) -> None:
    """Concepts at position 0, under the text's modulation, attend to [concept keys; image keys]."""
    arguments, concepts = batch(2)
    _, found = run(model, arguments, concepts, {str(index): str(index) for index in range(BLOCKS)})
    for row in range(2):
        own = {name: value if name.endswith("_ids") else value[row] for name, value in arguments.items()}
        for index, expected in enumerate(reference(model.state_dict(), own, concepts[row])):
            for maps, wanted in zip(found[str(index)], expected, strict=True):
                torch.testing.assert_close(maps[row].flatten(1).double(), wanted, atol=2e-4, rtol=1e-4)


def test_gradient_checkpointing_gives_the_same_gradients(model: Flux2Transformer2DModel) -> None:
    """Of LoRA on both sides of the blocks, and of the concepts; blocks run a second time in the backward pass and count once."""
    with_lora(model)  # type: ignore[arg-type]
    arguments, concepts = batch(2)
    concepts.requires_grad_()
    leaves = [concepts, *(value for name, value in model.named_parameters() if "lora_" in name)]

    def gradients() -> tuple[dict[str, GroupMaps], tuple[Tensor, ...]]:
        with concept_stream(model, concepts, GRID, MapOptions(GROUPS)) as stream:
            velocity = model(**arguments).sample
            maps = stream.maps()
            found = torch.autograd.grad(loss_of(maps) + velocity.square().mean(), leaves)
            assert same(stream.maps(), maps)
        return maps, found

    maps, expected = gradients()
    assert expected[0].abs().max() > 0
    model.enable_gradient_checkpointing()
    again, found = gradients()
    assert same(again, maps) and all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@torch.no_grad()
def test_fused_projections_give_the_same_maps(model: Flux2Transformer2DModel) -> None:
    arguments, concepts = batch(2)
    _, expected = run(model, arguments, concepts)
    model.fuse_qkv_projections()
    assert model.transformer_blocks[0].attn.fused_projections
    close(run(model, arguments, concepts)[1], expected, atol=1e-5, rtol=1e-5)


def test_single_blocks_have_no_maps(model: Flux2Transformer2DModel) -> None:
    arguments, concepts = batch(1)
    says = r"groups\.late: block 3 is out of range; valid: 0\.\.2, .*; FLUX\.2's single-stream blocks, .*, have no maps"
    with pytest.raises(ParamsError, match=says):
        run(model, arguments, concepts, {"late": "2..3"})
