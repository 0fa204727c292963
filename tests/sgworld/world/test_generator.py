"""Drawing: the generator's states, losses and phases."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline

from sgworld.flux import build_transformer
from sgworld.world.compose import compose
from sgworld.world.generator import (
    MARKED,
    SHIFT,
    STARTING,
    SURE,
    TIMES,
    Batch,
    Batches,
    Mixture,
    Phase,
    draw_states,
    fit,
    latents_of,
    losses_of,
    token_weights,
    velocity_of,
)
from sgworld.world.hearing import Encoded, Sounds
from sgworld.world.raster import render
from sgworld.world.recipe import TOKENS
from sgworld.world.rows import Reader, held_by_reading, mute, muted
from sgworld.world.specification import SLOTS, Caption
from tests.sgworld.world.small import BEHIND, POOL


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _text(count: int) -> Encoded:
    return Encoded(torch.randn(count, TOKENS, 96, generator=_generator(1)), torch.randn(count, 64, generator=_generator(2)))


def test_states_are_noise_between_and_led() -> None:
    mixture = Mixture((0.25, 0.1875, 0.125), between=0.25)
    velocity, text = velocity_of(build_transformer(0, 2).eval()), _text(16)
    noise, scenes = torch.randn(16, 64, 16, generator=_generator()), torch.randn(16, 64, 16, generator=_generator(4))
    stand = draw_states(velocity, text, noise, scenes, mixture, _generator(6))
    between, led = round(16 * mixture.between), round(16 * mixture.led[0])
    assert torch.equal(stand.states[between : 16 - led], noise[between : 16 - led])
    assert (stand.times[between : 16 - led] == 1).all() and (stand.times[:between] < 1).all()
    assert stand.led.tolist() == [False] * (16 - led) + [True] * led
    assert stand.times[16 - led :].tolist() == pytest.approx([0.5, 0.25, 0.1, 0.1])
    with torch.no_grad():
        x = noise[-1:].clone()
        for t, after in ((1.0, 0.5), (0.5, 0.25), (0.25, 0.1)):
            x -= velocity(x, torch.tensor([t]), text.part(slice(15, 16))) * (t - after)
    assert torch.allclose(stand.states[-1:], x, atol=1e-5)


def test_a_batch_shows_what_the_reader_reads_where_it_tells_places_best(pipeline: FluxPipeline) -> None:
    mute(pipeline.transformer, BEHIND)
    sounds, reader = Sounds(POOL, pipeline, 6, 3), Reader(pipeline.transformer, BEHIND, TOKENS).frozen()
    batch, again = (Batches(sounds, reader, pipeline.vae, 4)[4] for _ in range(2))
    captions, noise, text, names = sounds[4]
    scenes, far = reader.scenes(captions, noise, text, names)
    best = far.argsort()[:4]
    assert far.min() > SURE, "weights are random"
    assert torch.equal(batch.noise, noise[best]) and torch.equal(batch.scenes, again.scenes)
    assert torch.equal(batch.text.states, text.states[best]) and torch.equal(batch.text.pooled, text.pooled[best])
    assert torch.equal(batch.scenes, latents_of(pipeline.vae, np.stack([render(scenes[index]) for index in best])))


def test_noises_that_are_told_exactly_enough_are_taken_as_they_come(
    pipeline: FluxPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    mute(pipeline.transformer, BEHIND)
    sounds, reader = Sounds(POOL, pipeline, 6, 3), Reader(pipeline.transformer, BEHIND, TOKENS).frozen()
    captions, noise, text, names = sounds[0]
    scenes, _ = reader.scenes(captions, noise, text, names)
    monkeypatch.setattr(Reader, "scenes", lambda *_: (scenes, torch.tensor([0.5, 3.0, 0.1, 2.0, 0.0, 0.2])))
    for size, chosen in ((3, [0, 2, 4]), (5, [0, 2, 4, 5, 3])):
        assert torch.equal(Batches(sounds, reader, pipeline.vae, size)[0].noise, noise[chosen])


def test_what_is_not_explained_is_logged_by_own_steps() -> None:
    scenes, noise = (torch.randn(16, 64, 16, generator=_generator(seed)) for seed in (4, 5))
    batch, mixture = Batch(noise, scenes, _text(16), torch.ones(16, 64)), Mixture((0.25, 0.1875, 0.125), between=0.25)

    def exact(states: torch.Tensor, times: torch.Tensor, _: Encoded) -> torch.Tensor:
        """Knows the scenes of a whole batch, and guesses zero for a part of one."""
        aim = scenes if len(states) == 16 else torch.zeros_like(states)
        return (states - aim) / times[:, None, None]

    loss, logged = losses_of(exact, batch, mixture, _generator(6))
    assert loss.item() == 0 and {name: each.item() for name, each in logged.items()} == dict.fromkeys(
        ("unexplained", "led_1", "led_2", "led_3"), 0.0
    )

    def zero(states: torch.Tensor, times: torch.Tensor, _: Encoded) -> torch.Tensor:
        return states / times[:, None, None]

    def share(*rows: int) -> float:
        return float(scenes[list(rows)].square().mean() / scenes.var(0).mean())

    _, logged = losses_of(zero, batch, mixture, _generator(6))
    assert {name: each.item() for name, each in logged.items()} == pytest.approx(
        {"unexplained": share(*range(4, 12)), "led_1": share(12), "led_2": share(13), "led_3": share(14, 15)}, rel=1e-4
    )
    assert set(losses_of(zero, batch, Mixture(between=0.0), _generator(6))[1]) == {"unexplained"}


def test_errors_weigh_more_where_a_mark_is() -> None:
    scene = compose(Caption(("cat", "hat"), (("cat", "wearing", "hat"),)), np.full(SLOTS, 0.3))
    (mark,) = scene.marks
    weights = token_weights(scene).view(8, 8)
    assert weights.mean().item() == pytest.approx(1)
    cells = {(y // 2, x // 2) for y in range(mark.y, mark.y + mark.h) for x in range(mark.x, mark.x + mark.w)}
    heavy = {(y, x) for y, x in (weights > 1).nonzero().tolist()}
    assert heavy == cells and weights.max() / weights.min() == pytest.approx(MARKED)
    assert torch.equal(token_weights(compose(POOL[0], np.full(SLOTS, 0.3))), torch.ones(64))
    scenes, noise = (torch.randn(2, 64, 16, generator=_generator(seed)) for seed in (4, 5))
    aside = torch.zeros(2, 64)
    aside[0, :2] = 32.0

    def wrong(states: torch.Tensor, times: torch.Tensor, _: Encoded) -> torch.Tensor:
        """By 1 in the first token of the first sample."""
        velocities = (states - scenes) / times[:, None, None]
        velocities[0, 0] += 1
        return velocities

    batch = Batch(noise, scenes, _text(2), aside)
    loss, logged = losses_of(wrong, batch, Mixture(between=0.0), _generator(6))
    assert loss.item() == pytest.approx(32 / 64 / 2, rel=1e-4)
    assert logged["unexplained"].item() == pytest.approx(1 / 64 / 2 / scenes.var(0).mean().item(), rel=1e-4)


@pytest.mark.parametrize("alone", [False, True])
def test_reading_is_held_while_drawing_is_learned(pipeline: FluxPipeline, tmp_path: Path, alone: bool) -> None:
    torch.manual_seed(0)
    model = build_transformer(3, 5)
    mute(model, BEHIND)
    reader, before = Reader(model, BEHIND, TOKENS).frozen(), {name: each.clone() for name, each in model.state_dict().items()}
    _, noise, text, _ = Sounds(POOL, pipeline, 4, 3)[0]
    phase = Phase(3, STARTING, tuple(range(5)), BEHIND, rate=1e-2, batch=4, average=0.0, behind_alone=alone)
    fit(model, reader, POOL, pipeline, pipeline.vae, tmp_path, phase, seed=1, compiled=False)
    moved = {name for name, each in model.state_dict().items() if not torch.equal(each, before[name])}
    held = {id(each) for each in held_by_reading(model, BEHIND)}
    assert {name for name, each in model.named_parameters() if id(each) in held}.isdisjoint(moved)
    assert {"transformer_blocks.4.ff.net.2.weight", "transformer_blocks.4.ff_context.net.2.weight", "proj_out.weight"} <= moved
    before_places = {f"transformer_blocks.{block}.ff.net.2.weight" for block in range(4)}
    assert before_places.isdisjoint(moved) if alone else before_places <= moved
    for own, kept in zip(Reader(model, BEHIND, TOKENS).told(noise, text), reader.told(noise, text), strict=True):
        assert torch.equal(own, kept)
    assert muted(model, BEHIND) and all(each.requires_grad for each in model.parameters())


def test_times_are_the_schedulers() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=SHIFT)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 4, 4))
    assert scheduler.sigmas.tolist() == pytest.approx(list(TIMES))
