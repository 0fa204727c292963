"""Text rows trained by themselves are those of the whole generator."""

from pathlib import Path

import pytest
import torch
from diffusers import FluxPipeline

from sgworld.flux import build_transformer
from sgworld.world.generator import TAUGHT, TaughtFlux
from sgworld.world.hearing import Ear, Sounds
from sgworld.world.recipe import TOKENS
from sgworld.world.rows import TEXT_PARTS, HeardBatches, TextRows, mute, muted, read_alone, reading_blocks
from tests.sgworld.world.small import BEHIND, POOL


@pytest.fixture
def flux() -> TaughtFlux:
    """A muted generator of random weights."""
    torch.manual_seed(0)
    model = build_transformer(2, 5)
    mute(model, BEHIND)
    return TaughtFlux(model, TOKENS, BEHIND)


def test_text_rows_alone_tell_what_the_whole_generator_does(pipeline: FluxPipeline, flux: TaughtFlux) -> None:
    sounds = Sounds(POOL, pipeline, 4, 3)
    batch, (_, noise, text, _) = HeardBatches(sounds, Ear(flux.model, 0, TOKENS).frozen())[1], sounds[1]
    rows = TextRows(flux.model, BEHIND, flux.maps)
    with torch.no_grad():
        alone, whole = rows(batch.words, batch.conditioning), flux(noise, torch.ones(4), text)[1]
        for step in ("link", "frame", "place"):
            assert torch.allclose(alone[step], whole[step], atol=0.05, rtol=0.02), "to what bfloat16 keeps"
        flux.model.transformer_blocks[2].attn.to_v.bias += 1
        spoken = flux(noise, torch.ones(4), text)[1]
        assert not torch.allclose(alone["place"], spoken["place"], atol=0.05, rtol=0.02), "image rows are heard again"


def test_what_is_muted_is_known(flux: TaughtFlux) -> None:
    assert muted(flux.model, BEHIND) and not muted(build_transformer(2, 5), BEHIND)
    with torch.no_grad():
        flux.model.transformer_blocks[1].attn.to_v.bias[3] = 1e-3
    assert not muted(flux.model, BEHIND)


def test_reading_alone_moves_text_weights_only(pipeline: FluxPipeline, flux: TaughtFlux, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in flux.state_dict().items()}
    batches = HeardBatches(Sounds(POOL, pipeline, 16, 3), Ear(flux.model, 0, TOKENS).frozen())
    rows, batch = TextRows(flux.model, BEHIND, flux.maps), batches[100]

    def errors() -> dict[str, float]:
        known = batch.known
        with torch.no_grad():
            said = rows(batch.words, batch.conditioning)
        wrong = {step: each[known.samples, known.rows] - known.features[step] for step, each in said.items()}
        return {step: float(each.square().mean()) for step, each in wrong.items()}

    first = errors()
    read_alone(rows, batches, tmp_path, TAUGHT, steps=30, rate=3e-3)
    assert {step: value < 0.9 * first[step] for step, value in errors().items()} == dict.fromkeys(first, True)
    moved = {name for name, value in flux.state_dict().items() if not torch.equal(value, before[name])}
    parts = ("norm1_context", "ff_context", *TEXT_PARTS, "maps")
    assert moved and all(any(part in name for part in parts) for name in moved)
    assert {int(name.split(".")[2]) for name in moved if "transformer_blocks" in name} == set(reading_blocks(BEHIND))
