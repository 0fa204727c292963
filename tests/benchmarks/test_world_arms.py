"""What the exploration of arms in the world of several relations gives a generator: noise, phrases and times."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline

from benchmarks._coupling import _of, coupled, like, reversing, turned
from benchmarks.world_arms import VARIANTS, PhraseModel, Phrases
from sgpipe.graphs.scene_graph import SceneGraph
from sgworld.flux import build_transformer
from sgworld.language import build_clip, build_t5, clip_tokenizer, t5_tokenizer
from sgworld.vae import build_vae
from tests.training.world import World, tiny_train, write_world


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline of random weights that knows the words of this world."""
    made = tmp_path_factory.mktemp("pipeline")
    clip, words = clip_tokenizer(["a photo of cat in front of dog on a plain background"], 32), t5_tokenizer(32, ",")
    encoders, generator = (build_clip(clip), clip, build_t5(len(words)), words), build_transformer(0, 1)
    FluxPipeline(FlowMatchEulerDiscreteScheduler(), build_vae(0), *encoders, generator).save_pretrained(made)
    return made


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return write_world(tmp_path_factory.mktemp("world"), train=6, val=2)


def test_other_noise_has_the_means_of_channels_and_nothing_else_in_common() -> None:
    noise = torch.randn(3, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    other = like(noise, torch.Generator().manual_seed(2))
    for y, x in ((0, 0), (0, 1), (1, 0), (1, 1)):
        means = (each[..., y::2, x::2].mean((-2, -1)) for each in (noise, other))
        assert torch.allclose(*means, atol=1e-6)
    assert abs(torch.corrcoef(torch.stack((noise.flatten(), other.flatten())))[0, 1]) < 0.1
    assert other.std() == pytest.approx(1, abs=0.05)


def test_a_free_channel_has_a_mean_of_its_own_and_a_turned_one_the_opposite() -> None:
    noise = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    kept, free = like(noise, torch.Generator().manual_seed(2)), like(noise, torch.Generator().manual_seed(2), [None, 6])
    differs = (kept - free).abs().amax((2, 3)) > 1e-6
    assert differs.tolist() == [[False] * 4, [False, True, False, False]]
    one = free[1, 1, 1::2, 0::2]
    assert abs(one.mean() - noise[1, 1, 1::2, 0::2].mean()) > 1e-3
    assert torch.equal(turned(noise, 6)[:, 1, 1::2, 0::2], -noise[:, 1, 1::2, 0::2])
    assert torch.equal(turned(turned(noise, 6), 6), noise)


def test_a_phrase_is_what_the_text_encoder_reads_between_the_two_names(folder: Path) -> None:
    pipeline = FluxPipeline.from_pretrained(folder)
    text = "a photo of cat in front of dog on a plain background"
    ids = pipeline.tokenizer_2([text], padding="max_length", return_tensors="pt").input_ids
    assert pipeline.tokenizer_2.convert_ids_to_tokens(ids[0])[4:7] == ["▁in", "▁front", "▁of"]
    states = pipeline.text_encoder_2(ids)[0][0]
    found = Phrases(folder).rows(("cat", "in front of", "dog"))
    assert all(torch.allclose(*each, atol=1e-5) for each in zip(found, (states[3:4], states[4:7], states[7:8]), strict=True))


def test_phrases_take_the_place_of_padding_and_change_nothing_else(folder: Path, world: World) -> None:
    data, plain, phrases = world.data(), world.model(tiny_train()), Phrases(folder)
    model = PhraseModel(**vars(plain), phrases=phrases)
    texts = [data.train[0].prompts["neutral"]] * 2
    text = data.prompts.get(texts)
    graph, none = data.train[0].graph, SceneGraph()
    width = text.states.shape[-1]
    phrases._known[graph.named[0]] = [torch.full((rows, width), value) for rows, value in ((1, 5.0), (2, 7.0), (1, 6.0))]
    told = model.condition([none, graph], texts, text, data.names).states[:, -text.states.shape[1] :]
    before = plain.condition([none, graph], texts, text, data.names).states[:, -text.states.shape[1] :]
    assert torch.equal(told[0], before[0]) and torch.equal(told[1, :-2], before[1, :-2])
    assert (told[1, -2:] == 7).all()
    named = replace(model, names=True).condition([none, graph], texts, text, data.names).states[:, -text.states.shape[1] :]
    words = texts[0].split()
    at = [words.index(name) for name in (graph.named[0][0], graph.named[0][2])]
    assert torch.equal(named[0], before[0])
    assert [row for row in range(named.shape[1] - 2) if not torch.equal(named[1, row], before[1, row])] == sorted(at)
    assert [named[1, row].mean().item() for row in at] == pytest.approx([5, 6], abs=0.5)


def test_the_search_finds_noises_that_are_drawn_nearer_to_the_crops(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks._coupling.choose", lambda device: "float32")
    data, draws = world.data(), 3
    noises, errors = coupled(world.denoiser(), data, draws, batch=len(data.train), compiled=False)
    ids = [each.triple_id for each in data.train]
    latents, random = data.latents.latents(ids), torch.Generator().manual_seed(5)
    text, base = data.prompts.get([each.prompts["relational"] for each in data.train]), world.denoiser()

    @torch.no_grad()
    def error(noise: torch.Tensor) -> torch.Tensor:
        return (noise - base.velocity(noise, torch.ones(len(ids)), text, None) - latents).square().flatten(1).mean(1)

    found = torch.tensor([errors[each] for each in ids])
    assert torch.allclose(found, error(torch.stack([noises[each] for each in ids])), rtol=1e-4)
    drawn = torch.stack([error(torch.randn(latents.shape, generator=random)) for _ in range(draws)]).amin(0)
    assert (found <= drawn * 1.0001).all() and (found < drawn * 0.99).any()


def test_the_free_channel_is_the_one_that_exchanges_the_roles_of_most(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    data = world.data()
    noise = torch.ones_like(data.latents.latents([data.train[0].triple_id])[0].float())
    given: list[torch.Tensor] = []

    class Base:
        family = None

        def velocity(self, noise_: torch.Tensor, *_: object) -> torch.Tensor:
            given.append(noise_.view(len(noise_), 4, noise.shape[1] // 2, 2, -1, 2))
            return noise_

    class Reader:
        """Sees roles exchanged under channel 6 always, under channel 3 in every second image, and under all where `always`."""

        always = False

        def scores(self, images: np.ndarray, statements: list) -> np.ndarray:
            three, six = ((_of(given[-1], channel) < 0).all((1, 2)).numpy() for channel in (3, 6))
            return (six | three & (np.arange(len(images)) % 2 == 1) | self.always).astype(float)[:, None]

    monkeypatch.setattr("sgworld.world.judge.ExactReader", Reader)
    monkeypatch.setattr("benchmarks._coupling.decode", lambda family, vae, latents: iter(latents.numpy()))
    monkeypatch.setattr("benchmarks._coupling.choose", lambda device: "float32")
    one = data.train[0]
    train, noises = [one] * 4, {one.triple_id: noise}
    assert reversing(Base(), replace(data, train=train), noises, None) == {one.predicate: 6}
    Reader.always = True  # a symmetrical class: nothing needs to be told
    assert reversing(Base(), replace(data, train=train), noises, None) == {}


def test_variants_differ_from_the_first_in_one_thing() -> None:
    first, *others = (each for each in VARIANTS.values() if not each.spoken)
    assert all(sum(a != b for a, b in zip(vars(first).values(), vars(each).values(), strict=True)) == 1 for each in others)
