"""The generator of the world of several relations: what noise means, what its training hands over, what is left of that."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline

from sgworld.flux import build_transformer
from sgworld.language import t5_tokenizer
from sgworld.world import SLOTS, compose
from sgworld.world.examples import PLACE, Places, caption_pool, draw_examples, places
from sgworld.world.generator import LEADING, READING, TAUGHT, Batch, Encoded, Phase, PlacedFlux, draw_states, losses_of
from sgworld.world.meaning import CHANNEL, CHANNELS, LEVELS, levels, uniforms
from sgworld.world.recipe import TOKENS
from sgworld.world.specification import ACROSS, Caption

POOL = [Caption(("cat", "dog"), (("cat", "left of", "dog"),)), Caption(("ball", "cat", "dog"))]


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _flux(blocks: int = 3) -> PlacedFlux:
    return PlacedFlux(build_transformer(0, blocks).eval(), TOKENS, heard_by=0, read_by=1)


def _text(count: int) -> Encoded:
    return Encoded(torch.randn(count, TOKENS, 96, generator=_generator(1)), torch.randn(count, 64, generator=_generator(2)))


def test_what_noise_means_is_uniform_and_independent() -> None:
    noise = torch.randn(20_000, 64, 16, generator=_generator())
    said, u = levels(noise), uniforms(noise)
    assert said.shape == (20_000, CHANNELS) and u.shape == (20_000, SLOTS) and u.min() > 0 and u.max() < 1
    assert np.abs(np.corrcoef(said.T) - np.eye(CHANNELS)).max() < 0.04
    for channel, count in enumerate(LEVELS):
        values, counts = np.unique(said[:, channel], return_counts=True)
        assert len(values) == count and np.abs(counts / len(u) - 1 / count).max() < 0.02
    assert set(CHANNEL) == set(range(SLOTS)) and set(CHANNEL.values()) == set(range(CHANNELS))
    assert all((u[:, slot] == said[:, channel]).all() for slot, channel in CHANNEL.items())


def test_a_noise_that_leans_the_other_way_exchanges_the_roles() -> None:
    noise = torch.randn(1, 64, 16, generator=_generator(3))
    u = uniforms(noise)[0]
    other = u.copy()
    other[ACROSS] = 1 - u[ACROSS]
    first, second = (compose(POOL[0], each).triples[0] for each in (u, other))
    assert first == (second[2], second[1], second[0])


def test_examples_show_what_their_noise_means() -> None:
    examples = draw_examples(POOL, np.random.default_rng(0), _generator(), 6)
    again = draw_examples(POOL, np.random.default_rng(0), _generator(), 6)
    assert examples.texts == again.texts and torch.equal(examples.noise, again.noise)
    known = {tuple(sorted(caption.names)): caption for caption in POOL}
    for scene, u in zip(examples.scenes, uniforms(examples.noise), strict=True):
        assert scene == compose(known[tuple(sorted(placed.name for placed in scene.objects))], u)


def test_places_are_those_of_the_named_objects() -> None:
    examples = draw_examples(POOL, np.random.default_rng(1), _generator(5), 4)
    tokenizer = t5_tokenizer(TOKENS, ",")
    known = places(tokenizer, examples.texts, examples.scenes)
    assert known.features.shape == (sum(len(scene.objects) for scene in examples.scenes), PLACE)
    ids = tokenizer(examples.texts, padding="max_length").input_ids
    index = 0
    for number, scene in enumerate(examples.scenes):
        for placed in scene.objects:
            assert known.samples[index] == number
            assert tokenizer.convert_ids_to_tokens(ids[number][known.rows[index]]) == f"▁{placed.name}"
            angle = torch.atan2(known.features[index, 8], known.features[index, 0]).item() % (2 * np.pi)
            assert angle == pytest.approx(((placed.y + placed.h / 2) / 2) % (2 * np.pi), abs=1e-5), "radians per token, downwards"
            index += 1


def test_without_places_it_is_the_models_own_forward() -> None:
    flux, text = _flux(), _text(2)
    states, times = torch.randn(2, 64, 16, generator=_generator()), torch.tensor([1.0, 0.4])
    ids = FluxPipeline._prepare_latent_image_ids(1, 8, 8, torch.device("cpu"), torch.float32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        own = flux.model(
            hidden_states=states, encoder_hidden_states=text.states, pooled_projections=text.pooled, timestep=times,
            img_ids=ids, txt_ids=torch.zeros(TOKENS, 3),
        ).sample.float()  # fmt: skip
        velocity, heard, said = flux(states, times, text)
        handed = Places(torch.tensor([0]), torch.tensor([4]), torch.ones(1, PLACE))
        forced, _, _ = flux(states, times, text, handed)
        same = Places(torch.tensor([0]), torch.tensor([4]), said[0, 4][None])
        as_said, _, _ = flux(states, times, text, same)
    assert torch.equal(velocity, own) and torch.equal(as_said, own)
    assert heard.shape == (2, TOKENS, CHANNELS)
    assert not torch.equal(forced[0], own[0]) and torch.equal(forced[1], own[1])


def test_states_are_noise_between_and_led() -> None:
    flux, text = _flux(), _text(16)
    noise, scenes = torch.randn(16, 64, 16, generator=_generator()), torch.randn(16, 64, 16, generator=_generator(4))
    stand = draw_states(flux, text, noise, scenes, LEADING, _generator(6))
    between, led = round(16 * LEADING.between), round(16 * LEADING.led[0])
    assert torch.equal(stand.states[between : 16 - led], noise[between : 16 - led])
    assert (stand.times[between : 16 - led] == 1).all() and (stand.times[:between] < 1).all()
    assert stand.led.tolist() == [False] * (16 - led) + [True] * led
    assert stand.times[16 - led :].tolist() == [0.75, 0.5, 0.25, 0.25]
    with torch.no_grad():
        x = noise[-1:].clone()
        for t in (1.0, 0.75, 0.5):
            x -= flux(x, torch.tensor([t]), text.part(slice(15, 16)))[0] / 4
    assert torch.allclose(stand.states[-1:], x, atol=1e-5)


def test_noise_and_places_are_taught_to_the_rows_of_names() -> None:
    flux = _flux()
    examples = draw_examples(POOL, np.random.default_rng(0), _generator(), 8)
    known = places(t5_tokenizer(TOKENS, ","), examples.texts, examples.scenes)
    scenes, text = torch.randn(8, 64, 16, generator=_generator(7)), _text(8)
    batch = Batch(examples.noise, scenes, text, known)
    phase = Phase(1, READING, (0, 1, 2), heard_by=0, read_by=1, batch=8)
    loss, logged = losses_of(flux, batch, phase, _generator(8))
    assert loss.item() == pytest.approx((logged["flow"] + TAUGHT * logged["places"] + logged["heard"]).item())
    plain, without = losses_of(flux, batch, replace(phase, forced=0.0), _generator(8))
    assert "places" not in without and plain is not None and torch.equal(plain, without["flow"])
    optimiser = torch.optim.Adam(flux.model.parameters(), 1e-2)
    for _ in range(12):
        optimiser.zero_grad()
        trained, after = losses_of(flux, batch, phase, _generator(8))
        trained.backward()
        optimiser.step()
    assert after["places"].item() < 0.7 * logged["places"].item() and after["heard"].item() < 0.9 * logged["heard"].item()


def test_captions_are_drawn_once(tmp_path: Path) -> None:
    pool = caption_pool(tmp_path, 5, 1)
    assert pool == caption_pool(tmp_path, 5, 1) and len(list(tmp_path.glob("*.json"))) == 1
    assert caption_pool(tmp_path, 3, 1) == pool[:3]
