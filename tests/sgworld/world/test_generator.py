"""The generator of the world of several relations: what noise means, what its training hands over, what is left of that."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from numpy.typing import NDArray

from sgpipe.relations.predicates import PREDICATES
from sgworld.flux import build_transformer
from sgworld.language import t5_tokenizer
from sgworld.world import SLOTS, compose
from sgworld.world.examples import Lessons, caption_pool, lessons
from sgworld.world.generator import LEADING, READING, TAUGHT, Batches, Phase, TaughtFlux, draw_states, latents_of, losses_of
from sgworld.world.hearing import HEARD_AS_A_LINE, Ear, Encoded, Sounds, features, listen, named, said_of, sharpen
from sgworld.world.meaning import CHANNEL, CHANNELS, LEVELS, cut, levels, meant, uniforms
from sgworld.world.raster import render
from sgworld.world.recipe import TOKENS
from sgworld.world.specification import ACROSS, PLACE_X, PLACE_Y, Caption, Placed
from sgworld.world.sprites import GRID
from sgworld.world.told import agreement, cells
from tests.sgworld.world.small import BEHIND, POOL


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _flux(blocks: int = 5) -> TaughtFlux:
    return TaughtFlux(build_transformer(0, blocks).eval(), TOKENS, BEHIND)


def _text(count: int) -> Encoded:
    return Encoded(torch.randn(count, TOKENS, 96, generator=_generator(1)), torch.randn(count, 64, generator=_generator(2)))


def test_what_noise_means_is_uniform_and_independent() -> None:
    noise = torch.randn(20_000, 64, 16, generator=_generator())
    said = levels(noise)
    u = uniforms(said)
    assert said.shape == (20_000, CHANNELS) and u.shape == (20_000, SLOTS) and u.min() > 0 and u.max() < 1
    assert np.abs(np.corrcoef(said.T) - np.eye(CHANNELS)).max() < 0.04
    for channel, count in enumerate(LEVELS):
        values, counts = np.unique(said[:, channel], return_counts=True)
        assert len(values) == count and np.abs(counts / len(u) - 1 / count).max() < 0.02
    assert set(CHANNEL) == set(range(SLOTS)) and set(CHANNEL.values()) == set(range(CHANNELS))
    assert all((u[:, slot] == said[:, channel]).all() for slot, channel in CHANNEL.items())


def test_a_noise_that_leans_the_other_way_exchanges_the_roles() -> None:
    noise = torch.randn(1, 64, 16, generator=_generator(3))
    u = uniforms(levels(noise))[0]
    other = u.copy()
    other[ACROSS] = 1 - u[ACROSS]
    first, second = (compose(POOL[0], each).triples[0] for each in (u, other))
    assert first == (second[2], second[1], second[0])


def test_a_neutral_caption_means_a_few_classes() -> None:
    said = levels(torch.randn(400, 64, 16, generator=_generator(11)))
    found = {}
    for pair in (("cat", "dog"), ("horse", "person")):
        scenes = [meant(Caption(pair), u) for u in uniforms(said)]
        by_value = {
            value: {scene.relations[0][1] for scene, each in zip(scenes, said, strict=True) if each[9] == value}
            for value in set(said[:, 9])
        }
        found[pair] = [by_value[value] for value in sorted(by_value)]
    assert found["cat", "dog"][:2] == found["horse", "person"][:2] == [{"left of"}, {"above"}]
    assert found["horse", "person"][2] == {"riding"} and all(len(several) == 1 for each in found.values() for several in each)


def test_what_a_caption_says_is_meant_as_composed_and_strangers_stand_where_pointed() -> None:
    u = uniforms(levels(torch.randn(40, 64, 16, generator=_generator(12))))
    assert [meant(POOL[0], each) for each in u] == [compose(POOL[0], each) for each in u]
    caption = Caption(("cat", "dog", "ball"), (("cat", "left of", "dog"),))

    def away(ball: Placed, each: NDArray[np.float64]) -> int:
        wanted = int(each[PLACE_X] * (GRID - ball.w + 1)), int(each[PLACE_Y] * (GRID - ball.h + 1))
        return abs(ball.x - wanted[0]) + abs(ball.y - wanted[1])

    pointed, composed = (np.array([away(scene(caption, each).objects[2], each) for each in u]) for scene in (meant, compose))
    assert pointed.mean() < 0.6 * composed.mean() and (pointed == 0).sum() > 1.5 * (composed == 0).sum()


def test_what_is_heard_is_cut_as_what_is_meant() -> None:
    said = levels(torch.randn(500, 64, 16, generator=_generator(9)))
    assert (cut(said_of(features(said))) == said).all()
    assert (cut(said_of(features(said) + 0.2 * torch.rand(500, 16, generator=_generator()))) == said).all(), "near is the same"
    assert (
        cut(np.array([[-0.0] * 16, [1.0] * 16])) == [[0.5 / count for count in LEVELS], [1 - 0.5 / count for count in LEVELS]]
    ).all()


def test_rows_are_those_of_names() -> None:
    tokenizer = t5_tokenizer(TOKENS, ",")
    found = named(tokenizer, POOL)
    assert found.samples.tolist() == [0, 0, 1, 1, 1]
    ids = tokenizer([caption.text() for caption in POOL], padding="max_length").input_ids
    places_of = zip(found.samples.tolist(), found.rows.tolist(), strict=True)
    tokens = [tokenizer.convert_ids_to_tokens(ids[sample][row]) for sample, row in places_of]
    assert tokens == ["▁cat", "▁dog", "▁ball", "▁cat", "▁dog"]


def test_places_are_those_of_the_named_objects() -> None:
    scenes = [compose(caption, u) for caption, u in zip(POOL, np.random.default_rng(1).random((2, SLOTS)), strict=True)]
    names = named(t5_tokenizer(TOKENS, ","), POOL)
    known = lessons(names, scenes, torch.zeros(2, CHANNELS))
    assert known.features["place"].shape == (5, 18) and known.rows is names.rows
    for index, placed in enumerate(placed for scene in scenes for placed in scene.objects):
        angle = torch.atan2(known.features["place"][index, 8], known.features["place"][index, 0]).item() % (2 * np.pi)
        assert angle == pytest.approx(((placed.y + placed.h / 2) / 2) % (2 * np.pi), abs=1e-5), "radians per token, downwards"


def test_links_and_frames_are_those_of_related_objects() -> None:
    caption = Caption(("cat", "dog", "ball", "cup"), (("dog", "left of", "cat"), ("ball", "above", "cat")))
    scene = compose(caption, np.random.default_rng(4).random(SLOTS))
    known = lessons(named(t5_tokenizer(TOKENS, ","), [caption]), [scene], torch.zeros(1, CHANNELS))

    def lengths(step: str, number: int, object_: int) -> float:
        """The number-th length of an object, cells, read off its lowest frequency."""
        half = 8 if step == "link" else 16
        sine, cosine = (known.features[step][object_, start + 4 * number + 3] for start in (half, 0))
        return float(torch.atan2(sine, cosine)) / 0.1 * 2

    cat, dog, ball, cup = scene.objects
    middle = {each.name: (each.y + each.h / 2, each.x + each.w / 2) for each in scene.objects}
    for number, (own, partner) in enumerate([(cat, dog), (dog, cat), (ball, cat)]):
        for axis in (0, 1):
            away = middle[partner.name][axis] - middle[own.name][axis]
            assert lengths("link", axis, number) == pytest.approx(away, abs=1e-3)
    assert (known.features["link"][3] == 0).all(), "nothing relates to the cup"
    subject, predicate, _ = scene.triples[0]
    told = known.features["link"][:, 16:]
    assert told[:2, 0].tolist() == [1.0 if each.name == subject else -1.0 for each in (cat, dog)]
    assert told[:3, 1:].sum(1).tolist() == [1.0] * 3 and told[0, 1 + PREDICATES.index(predicate)] == 1
    top, left = (min(getattr(each, side) for each in (cat, dog, ball)) for side in "yx")
    bottom, right = max(e.y + e.h for e in (cat, dog, ball)), max(e.x + e.w for e in (cat, dog, ball))
    for number, placed in enumerate((cat, dog, ball)):
        y, x = middle[placed.name]
        found = [lengths("frame", each, number) for each in range(4)]
        assert found == pytest.approx([y - top, x - left, bottom - top, right - left], abs=1e-3)
    assert [lengths("frame", each, 3) for each in range(4)] == pytest.approx([cup.h / 2, cup.w / 2, cup.h, cup.w], abs=1e-3)


def test_without_places_it_is_the_models_own_forward() -> None:
    flux, text = _flux(), _text(2)
    states, times = torch.randn(2, 64, 16, generator=_generator()), torch.tensor([1.0, 0.4])
    ids = FluxPipeline._prepare_latent_image_ids(1, 8, 8, torch.device("cpu"), torch.float32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        own = flux.model(
            hidden_states=states, encoder_hidden_states=text.states, pooled_projections=text.pooled, timestep=times,
            img_ids=ids, txt_ids=torch.zeros(TOKENS, 3),
        ).sample.float()  # fmt: skip
        velocity, said = flux(states, times, text)
        assert torch.equal(velocity, own)
        assert {step: each.shape[2] for step, each in said.items()} == {"heard": 16, "link": 41, "frame": 32, "place": 18}
        as_said = Lessons(torch.tensor([0, 1]), torch.tensor([4, 4]), {"place": said["place"][:, 4]})
        other = replace(as_said, features={"place": 1 + said["place"][:, 4]})
        none, first = torch.tensor([False, False]), torch.tensor([True, False])
        assert torch.equal(flux(states, times, text, as_said, ~none)[0], own)
        assert torch.equal(flux(states, times, text, other, none)[0], own)
        forced, found = flux(states, times, text, other, first)
    assert not torch.equal(forced[0], own[0]) and torch.equal(forced[1], own[1])
    assert torch.equal(found["place"], said["place"]), "what was said before it was handed"


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


def test_a_batch_shows_what_the_ear_hears(pipeline: FluxPipeline) -> None:
    sounds, ear = Sounds(POOL, pipeline, 6, 3), Ear(pipeline.transformer, 0, TOKENS).frozen()
    batch, again, (captions, noise, text, names) = (
        Batches(sounds, ear, pipeline.vae)[4],
        Batches(sounds, ear, pipeline.vae)[4],
        sounds[4],
    )
    assert (
        torch.equal(batch.noise, noise) and torch.equal(batch.scenes, again.scenes) and torch.equal(batch.text.states, text.states)
    )
    with torch.no_grad():
        heard = ear(noise, text)
    rows = [heard[sample, names.rows[names.samples == sample]].mean(0) for sample in range(6)]
    said = cut(said_of(torch.stack(rows)))
    scenes = [meant(caption, u) for caption, u in zip(captions, uniforms(said), strict=True)]
    assert torch.equal(batch.scenes, latents_of(pipeline.vae, np.stack([render(scene) for scene in scenes])))
    known = lessons(names, scenes, features(said))
    assert all(torch.equal(batch.known.features[step], each) for step, each in known.features.items())
    assert torch.equal(batch.known.features["heard"], features(said)[names.samples])


def test_an_ear_is_the_generators_first_blocks(pipeline: FluxPipeline) -> None:
    flux, ear = TaughtFlux(pipeline.transformer, TOKENS, BEHIND), Ear(pipeline.transformer, 0, TOKENS)
    _, noise, text, _ = Sounds(POOL, pipeline, 4, 3)[0]
    kept = ear.frozen()
    with torch.no_grad():
        heard = ear(noise, text)
        assert torch.equal(flux(noise, torch.ones(4), text)[1]["heard"], heard)
        ear.image.bias += 1
        assert not torch.equal(ear(noise, text), heard) and torch.equal(kept(noise, text), heard)
        ear.image.bias -= 1


def test_a_line_is_sharpened_to_steps(pipeline: FluxPipeline, tmp_path: Path) -> None:
    ear, others = Ear(pipeline.transformer, 0, TOKENS), Sounds(POOL, pipeline, 256, 5)
    listen(ear, Sounds(POOL, pipeline, 64, 4), tmp_path / "line", 120, 3e-3)

    def errors() -> torch.Tensor:
        _, noise, text, names = others[0]
        with torch.no_grad():
            return (ear(noise, text)[names.samples, names.rows] - features(levels(noise))[names.samples]).square().mean(0)

    before = errors()
    found = sharpen(ear, Sounds(POOL, pipeline, 64, 6), batches=20)
    after = errors()
    assert set(found) == set(torch.nonzero(before > HEARD_AS_A_LINE)[:, 0].tolist()) and len(found) > 8
    assert all(better < worse for worse, better in found.values())
    assert after.mean() < 0.8 * before.mean(), "on other sounds, too"


def test_noise_and_places_are_taught_to_the_rows_of_names(pipeline: FluxPipeline) -> None:
    torch.manual_seed(0)
    flux = TaughtFlux(build_transformer(1, 5), TOKENS, BEHIND)
    batch = Batches(Sounds(POOL, pipeline, 8, 3), Ear(flux.model, 0, TOKENS).frozen(), pipeline.vae)[0]
    phase = Phase(1, READING, tuple(range(5)), BEHIND, batch=8)
    loss, logged = losses_of(flux, batch, phase, _generator(8))
    taught = sum(weight * logged[step].item() for step, weight in TAUGHT.items())
    assert loss.item() == pytest.approx(logged["flow"].item() + taught)
    plain, without = losses_of(flux, batch, replace(phase, taught=False), _generator(8))
    assert "place" not in without and plain is not None and torch.equal(plain, without["flow"])
    optimiser = torch.optim.Adam(flux.parameters(), 1e-2)
    for _ in range(20):
        optimiser.zero_grad()
        trained, after = losses_of(flux, batch, phase, _generator(8))
        trained.backward()
        optimiser.step()
    assert {step: after[step].item() / logged[step].item() < 0.9 for step in TAUGHT} == dict.fromkeys(TAUGHT, True)


def test_captions_are_drawn_once(tmp_path: Path) -> None:
    pool = caption_pool(tmp_path, 5, 1)
    assert pool == caption_pool(tmp_path, 5, 1) and len(list(tmp_path.glob("*.json"))) == 1
    assert caption_pool(tmp_path, 3, 1) == pool[:3]


def test_what_is_told_is_counted_by_captions() -> None:
    scenes = [compose(caption, u) for caption, u in zip(POOL, np.random.default_rng(2).random((2, SLOTS)), strict=True)]
    known = lessons(named(t5_tokenizer(TOKENS, ","), POOL), scenes, torch.zeros(2, CHANNELS))
    middles = [(each.y + each.h / 2, each.x + each.w / 2) for scene in scenes for each in scene.objects]
    assert torch.allclose(cells(known.features["place"]), torch.tensor(middles), atol=1e-3)
    whole = agreement(known.features["place"], known, POOL)
    assert whole == {
        "2 objects, relations said: 1": {"captions": 1, "within_a_cell": 1.0, "error": 0.0},
        "3 objects, relations said: 0": {"captions": 1, "within_a_cell": 1.0, "error": 0.0},
    }
    ball, *others = scenes[1].objects
    moved = replace(scenes[1], objects=(replace(ball, x=ball.x + 2), *others))
    other = lessons(named(t5_tokenizer(TOKENS, ","), POOL), [scenes[0], moved], torch.zeros(2, CHANNELS))
    found = agreement(other.features["place"], known, POOL)
    two, three = found["2 objects, relations said: 1"], found["3 objects, relations said: 0"]
    assert two["within_a_cell"] == 1 and three["within_a_cell"] == 0 and three["error"] > 0
