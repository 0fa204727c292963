"""Text rows trained by themselves are those of the whole generator."""

from pathlib import Path

import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel

from sgworld.flux import build_transformer
from sgworld.world.examples import FEATURES, Lessons, cells, lessons
from sgworld.world.generator import velocity_of
from sgworld.world.hearing import Ear, Sounds, levels_heard
from sgworld.world.meaning import meant, uniforms
from sgworld.world.recipe import TOKENS
from sgworld.world.rows import TEXT_PARTS, HeardBatches, Reader, TextRows, linear_maps, mute, muted, read_alone, reading_blocks
from tests.sgworld.world.small import BEHIND, POOL


@pytest.fixture
def model() -> FluxTransformer2DModel:
    """A muted generator of random weights."""
    torch.manual_seed(0)
    model = build_transformer(2, 5)
    mute(model, BEHIND)
    return model


def test_text_rows_alone_tell_what_the_whole_generator_does(pipeline: FluxPipeline, model: FluxTransformer2DModel) -> None:
    _, noise, text, _ = Sounds(POOL, pipeline, 4, 3)[1]
    reader, seen = Reader(model, BEHIND, TOKENS), {}
    model.transformer_blocks[BEHIND["place"]].register_forward_hook(lambda _, __, out: seen.update(words=out[0].float()))

    def whole() -> torch.Tensor:
        velocity_of(model)(noise, torch.ones(4), text)
        return seen["words"][..., FEATURES["place"]]

    with torch.no_grad():
        assert torch.allclose(reader.told(noise, text)[1], whole(), atol=0.05, rtol=0.02), "to what bfloat16 keeps"
        alone = reader.told(noise, text)[1]
        model.transformer_blocks[2].attn.to_v.bias += 1
        assert not torch.allclose(alone, whole(), atol=0.05, rtol=0.02), "image rows are heard again"


def test_what_is_muted_is_known(model: FluxTransformer2DModel) -> None:
    assert muted(model, BEHIND) and not muted(build_transformer(2, 5), BEHIND)
    with torch.no_grad():
        model.transformer_blocks[1].attn.to_v.bias[3] = 1e-3
    assert not muted(model, BEHIND)


def test_a_frozen_reader_draws_what_comes_nearest(pipeline: FluxPipeline, model: FluxTransformer2DModel) -> None:
    reader = Reader(model, BEHIND, TOKENS).frozen()
    captions, noise, text, names = Sounds(POOL, pipeline, 8, 3)[2]
    (scenes, far), (heard, told) = reader.scenes(captions, noise, text, names), reader.told(noise, text)
    own, given = told[names.samples, names.rows], uniforms(levels_heard(heard, names))
    by_slots = lessons(names, [meant(*each) for each in zip(captions, given, strict=True)]).features["place"]
    known = lessons(names, scenes)
    by_told = known.features["place"]
    away = (cells(own) - cells(by_told)).abs().amax(1)
    assert far.tolist() == [away[known.samples == number].max().item() for number in range(8)]
    assert (cells(own) - cells(by_told)).abs().sum() < (cells(own) - cells(by_slots)).abs().sum()
    with torch.no_grad():
        model.transformer_blocks[1].ff_context.net[2].bias += 1
    assert reader.scenes(captions, noise, text, names)[0] == scenes


@pytest.mark.parametrize("own", [False, True])
def test_reading_alone_moves_text_weights_only(
    pipeline: FluxPipeline, model: FluxTransformer2DModel, tmp_path: Path, own: bool
) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batches = HeardBatches(Sounds(POOL, pipeline, 16, 3), Ear(model, 0, TOKENS).frozen())
    rows, batch = TextRows(model, BEHIND, linear_maps(model)), batches[100]

    def known_of(said: dict[str, torch.Tensor]) -> Lessons:
        return batch.nearest(said["place"]) if own else batch.meant()

    def errors() -> dict[str, float]:
        with torch.no_grad():
            said = rows(batch.words, batch.conditioning)
        known = known_of(said)
        wrong = {step: each[known.samples, known.rows] - known.features[step] for step, each in said.items()}
        return {step: float(each.square().mean()) for step, each in wrong.items()}

    first = errors()
    read_alone(rows, batches, tmp_path, steps=30, rate=3e-3, own=own, compiled=False)
    assert {step: value < 0.9 * first[step] for step, value in errors().items()} == dict.fromkeys(first, True)
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    parts = ("norm1_context", "ff_context", *TEXT_PARTS)
    assert moved and all(any(part in name for part in parts) for name in moved)
    assert {int(name.split(".")[1]) for name in moved} == set(reading_blocks(BEHIND))
