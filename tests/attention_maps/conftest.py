"""A small random FLUX and a batch for it; the golden vectors of the official code."""

import json
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel
from peft import LoraConfig
from safetensors.torch import load_file
from torch import Tensor, nn

from sgpipe.attention_maps.options import MapOptions
from sgpipe.attention_maps.scores import GroupMaps
from sgpipe.attention_maps.stream import concept_stream

GRID = (6, 5)
"""Not square, so that rows and columns cannot be taken for one another."""
TEXT, CONCEPTS, WIDTH_T5, WIDTH_POOLED, CHANNELS, SINGLE = 7, 3, 24, 20, 12, 2


def build(guidance: bool = True, blocks: int = 4, seed: int = 0) -> FluxTransformer2DModel:
    """2 heads of 16, `blocks` double and `SINGLE` single blocks; every parameter random, norms and biases included."""
    model = FluxTransformer2DModel(
        in_channels=CHANNELS,
        num_layers=blocks,
        num_single_layers=SINGLE,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH_T5,
        pooled_projection_dim=WIDTH_POOLED,
        guidance_embeds=guidance,
        axes_dims_rope=(4, 6, 6),
    )
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(0.15 * torch.randn(value.shape, generator=draw) + (".norm_" in name))
    return model.eval()


def batch(size: int, seed: int = 1) -> tuple[dict[str, Tensor], Tensor]:
    """Arguments of a forward for `size` samples, each at a time of its own, and their concepts."""
    draw = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw)

    height, width = GRID
    ids = torch.zeros(height, width, 3)
    ids[..., 1], ids[..., 2] = torch.arange(height)[:, None], torch.arange(width)
    arguments = {
        "hidden_states": random(size, height * width, CHANNELS),
        "encoder_hidden_states": random(size, TEXT, WIDTH_T5),
        "pooled_projections": random(size, WIDTH_POOLED),
        "timestep": torch.linspace(0.3, 0.9, size),
        "guidance": torch.full((size,), 3.5),
        "img_ids": ids.flatten(0, 1),
        "txt_ids": torch.zeros(TEXT, 3),
    }
    return arguments, random(size, CONCEPTS, WIDTH_T5)


GROUPS = {
    "early": "0..1", "late": "2..3", "all": "all",
    "single": {"single_blocks": "all"}, "across": {"blocks": "3", "single_blocks": "0"},
}  # fmt: skip


def run(model: nn.Module, size: int = 2, options: MapOptions | None = None) -> tuple[Tensor, dict[str, GroupMaps]]:
    """Velocity and maps of one forward."""
    arguments, concepts = batch(size)
    with concept_stream(model, concepts, GRID, options or MapOptions(GROUPS)) as stream:
        velocity = model(**arguments).sample
    return velocity, stream.maps()


def with_lora(model: FluxTransformer2DModel, rank: int = 3) -> FluxTransformer2DModel:
    """A LoRA on both sides of all double blocks and in all single ones, with random up-projections."""
    double, single = r"attn\.(to_q|to_k|to_v|to_out\.0|add_k_proj|add_v_proj)", r"(attn\.(to_q|to_k|to_v)|proj_out)"
    targets = rf"(transformer_blocks\.\d+\.{double}|single_transformer_blocks\.\d+\.{single})"
    model.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=targets))
    draw = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.copy_(0.1 * torch.randn(value.shape, generator=draw))
    return model


def same(found: dict[str, GroupMaps], expected: dict[str, GroupMaps]) -> bool:
    assert found.keys() == expected.keys()
    return all(torch.equal(a, b) for name in found for a, b in zip(found[name], expected[name], strict=True))


def close(found: dict[str, GroupMaps], expected: dict[str, GroupMaps], **tolerance: float) -> None:
    for name, maps in expected.items():
        torch.testing.assert_close(tuple(found[name]), tuple(maps), **tolerance)


@pytest.fixture(scope="session")
def built() -> FluxTransformer2DModel:
    return build()


@pytest.fixture
def model(built: FluxTransformer2DModel) -> FluxTransformer2DModel:
    """A model with guidance embeddings, as FLUX.1-dev has; a copy, which tests may change."""
    return deepcopy(built)


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    """Bit-for-bit comparisons want one order of summation."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass
class Golden:
    """Vectors of the official code: `inputs` and `outputs` by name, and the model they belong to."""

    model: FluxTransformer2DModel
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    atol: float
    rtol: float

    def arguments(self) -> dict[str, Tensor]:
        names = ("hidden_states", "encoder_hidden_states", "pooled_projections", "timestep", "img_ids", "txt_ids")
        return {name: self.inputs[name] for name in names}

    def check(self, found: Tensor, name: str) -> None:
        expected = self.outputs[name].reshape(found.shape)
        torch.testing.assert_close(found, expected, atol=self.atol, rtol=self.rtol)


@pytest.fixture(scope="session")
def golden(reference_dir: Path) -> Golden:
    path = reference_dir / "golden/concept_attention_flux.safetensors"
    if not path.is_file():
        pytest.skip(f"golden vectors are absent: no {path}")
    about, tensors = json.loads(path.with_suffix(".json").read_text()), load_file(path)

    def under(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

    model = FluxTransformer2DModel(**about["config"]).eval()
    model.load_state_dict(under("weights/"))
    tolerance = about["tolerance"]
    return Golden(model, under("in/"), under("out/"), tolerance["atol"], tolerance["rtol"])
