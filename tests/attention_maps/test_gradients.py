"""Maps are differentiable: against finite differences, under gradient checkpointing, and not at all where asked."""

import re

import pytest
import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

from sgpipe.attention_maps.options import MapOptions
from sgpipe.attention_maps.scores import GroupMaps
from sgpipe.attention_maps.stream import concept_stream
from tests.attention_maps.conftest import GRID, GROUPS, batch, build, run, same, with_lora


def loss_of(maps: dict[str, GroupMaps]) -> Tensor:
    """A loss that weighs every patch of every map differently."""
    total = torch.zeros(())
    for saliency, cross in maps.values():
        weights = torch.linspace(-1, 1, saliency[0].numel()).reshape(saliency[0].shape)
        total = total + (weights * (saliency.tanh() + cross.sin())).mean()
    return total


@pytest.mark.parametrize("normalisation", ["none", "concepts", "patches"])
def test_the_gradient_is_the_slope(normalisation: str) -> None:
    """Against a central difference, in float64, along a random direction of the concepts and of the LoRA weights before them."""
    model = with_lora(build(blocks=2)).double()
    arguments, concepts = batch(1)
    arguments = {name: value.double() for name, value in arguments.items()}
    concepts = concepts.double().requires_grad_()
    reached = re.compile(r"(transformer_blocks\.|single_transformer_blocks\.(0\.|1\.attn\.)).*lora_")
    leaves = [concepts, *(value for name, value in model.named_parameters() if reached.match(name))]
    draw = torch.Generator().manual_seed(3)
    direction = [torch.randn(leaf.shape, generator=draw, dtype=leaf.dtype) for leaf in leaves]

    groups = {"double": "all", "single": {"single_blocks": "all"}}

    def loss() -> Tensor:
        with concept_stream(model, concepts, GRID, MapOptions(groups, normalisation)) as stream:
            model(**arguments)
        return loss_of(stream.maps())

    gradients = torch.autograd.grad(loss(), leaves)
    slope = sum((gradient * step).sum() for gradient, step in zip(gradients, direction, strict=True))
    values = []
    with torch.no_grad():
        for sign in (-1, 2):
            for leaf, step in zip(leaves, direction, strict=True):
                leaf += sign * 1e-3 * step
            values.append(loss())
    difference = (values[1] - values[0]) / 2e-3
    assert slope.abs() > 1e-3
    torch.testing.assert_close(slope.float(), difference.float(), atol=2e-4, rtol=1e-2)


def test_gradient_checkpointing_gives_the_same_gradients(model: FluxTransformer2DModel) -> None:
    """Blocks run a second time in the backward pass, of two forwards in one stream, and count once."""
    with_lora(model)
    arguments, concepts = batch(2)
    leaves = [value for name, value in model.named_parameters() if "lora_" in name]

    def gradients() -> tuple[dict[str, GroupMaps], tuple[Tensor, ...]]:
        with concept_stream(model, concepts, GRID, MapOptions(GROUPS)) as stream:
            first = model(**arguments).sample
            second = model(**arguments | {"hidden_states": first}).sample
            maps = stream.maps()
            found = torch.autograd.grad(loss_of(maps) + second.square().mean(), leaves)
            assert same(stream.maps(), maps)
        return maps, found

    maps, expected = gradients()
    model.enable_gradient_checkpointing()
    again, found = gradients()
    assert same(again, maps)
    torch.testing.assert_close(found, expected)


def test_detached_maps_leave_the_caller_its_gradients(model: FluxTransformer2DModel) -> None:
    with_lora(model)
    velocity, maps = run(model, options=MapOptions(GROUPS, detach=True))
    assert velocity.requires_grad
    assert not any(map_.requires_grad for group in maps.values() for map_ in group)
    assert same(maps, {name: GroupMaps(*(m.detach() for m in group)) for name, group in run(model)[1].items()})
