"""What the exploration of arms in the world of several relations gives a generator: noise, phrases and times."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline

from benchmarks._coupling import Coupled, _of, coupled, like, reversing, turned
from benchmarks._phrases import PhraseModel, Phrases, Told
from benchmarks.world_arms import VARIANTS
from sgpipe.backbones.base import TextCondition
from sgpipe.graphs.prompts import words
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


def test_a_free_channel_has_a_mean_of_its_own() -> None:
    noise = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    kept, free = like(noise, torch.Generator().manual_seed(2)), like(noise, torch.Generator().manual_seed(2), [None, 6])
    differs = (kept - free).abs().amax((2, 3)) > 1e-6
    assert differs.tolist() == [[False] * 4, [False, True, False, False]]
    one = free[1, 1, 1::2, 0::2]
    assert abs(one.mean() - noise[1, 1, 1::2, 0::2].mean()) > 1e-3
    assert torch.equal(free[1, 1, 0::2], kept[1, 1, 0::2])


def test_of_each_noise_its_own_channel_is_turned() -> None:
    noise = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    channels = torch.tensor([6, 13])
    found = turned(noise, channels)
    assert torch.equal(found[0, 1, 1::2, 0::2], -noise[0, 1, 1::2, 0::2])
    assert torch.equal(found[1, 3, 0::2, 1::2], -noise[1, 3, 0::2, 1::2])
    assert (found != noise).sum() == 2 * 64
    assert torch.equal(turned(found, channels), noise)


def test_a_phrase_is_what_the_text_encoder_reads_between_the_two_names(folder: Path) -> None:
    pipeline = FluxPipeline.from_pretrained(folder)
    text = "a photo of cat in front of dog on a plain background"
    ids = pipeline.tokenizer_2([text], padding="max_length", return_tensors="pt").input_ids
    assert pipeline.tokenizer_2.convert_ids_to_tokens(ids[0])[4:7] == ["▁in", "▁front", "▁of"]
    states = pipeline.text_encoder_2(ids)[0][0]
    told = Phrases(folder).told(SceneGraph.of("cat", "in front of", "dog"))
    found = (told.names[0], told.predicates, told.names[1])
    assert all(torch.allclose(*each, atol=1e-5) for each in zip(found, (states[3:4], states[4:7], states[7:8]), strict=True))
    assert len(told.again) == 0


def test_of_several_triples_a_name_that_is_said_again_has_rows_of_its_own(folder: Path) -> None:
    graph = SceneGraph(("dog", "cat"), ((1, "in front of", 0), (0, "in front of", 1)))
    pipeline = FluxPipeline.from_pretrained(folder)
    ids = pipeline.tokenizer_2([words(graph)], padding="max_length", return_tensors="pt").input_ids
    said = pipeline.tokenizer_2.convert_ids_to_tokens(ids[0])
    assert [said[n] for n in (3, 7, 8, 9, 13)] == ["▁cat", "▁dog", "▁and", "▁dog", "▁cat"]
    states = pipeline.text_encoder_2(ids)[0][0]
    told = Phrases(folder).told(graph)
    assert torch.allclose(told.names[1], states[3:4], atol=1e-5) and torch.allclose(told.names[0], states[7:8], atol=1e-5)
    assert torch.allclose(told.again, states[[9, 13]], atol=1e-5)
    assert torch.allclose(told.predicates, states[[4, 5, 6, 10, 11, 12]], atol=1e-5)


def test_phrases_take_the_place_of_padding_and_change_nothing_else(folder: Path, world: World) -> None:
    data, plain, phrases = world.data(), world.model(tiny_train()), Phrases(folder)
    model = PhraseModel(**vars(plain), phrases=phrases)
    texts = [data.train[0].prompts["neutral"]] * 2
    text = data.prompts.get(texts)
    graph, none = data.train[0].graph, SceneGraph()
    width = text.states.shape[-1]
    one, two = (torch.full((rows, width), value) for rows, value in ((1, 5.0), (1, 6.0)))
    phrases._known[graph] = Told({0: one, 1: two}, torch.full((2, width), 7.0), torch.full((1, width), 8.0))
    told = model.condition([none, graph], texts, text, data.names).states[:, -text.states.shape[1] :]
    before = plain.condition([none, graph], texts, text, data.names).states[:, -text.states.shape[1] :]
    assert torch.equal(told[0], before[0]) and torch.equal(told[1, :-2], before[1, :-2])
    assert (told[1, -2:] == 7).all()
    named = replace(model, names=True).condition([none, graph], texts, text, data.names).states[:, -text.states.shape[1] :]
    said = texts[0].split()
    at = [said.index(name) for name in graph.objects]
    assert torch.equal(named[0], before[0])
    assert (named[1, -3:-1] == 7).all() and (named[1, -1] == 8).all()
    assert [row for row in range(named.shape[1] - 3) if not torch.equal(named[1, row], before[1, row])] == sorted(at)
    assert [named[1, row].mean().item() for row in at] == pytest.approx([5, 6], abs=0.5)


def test_noises_are_found_that_are_drawn_nearer_to_the_crops_under_either_sentence(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks._coupling.choose", lambda device: "float32")
    data, draws, base = world.data(), 3, world.denoiser()
    asked: list[str] = []

    def encoded(texts: list[str]) -> TextCondition:
        """The relational prompts as they are; reversed ones as the neutral prompts, which are cached."""
        asked.extend(texts)
        known = {words(each.graph): each.prompts["relational"] for each in data.train}
        other = {words(each.graph.reversed()): each.prompts["neutral"] for each in data.train}
        return data.prompts.get([known.get(text) or other[text] for text in texts])

    def error(pairs: list[Coupled], condition: str, noise: torch.Tensor | None = None) -> torch.Tensor:
        noise = torch.stack([each.noise for each in pairs]) if noise is None else noise
        text = data.prompts.get([each.prompts[condition] for each in data.train])
        with torch.no_grad():
            velocity = base.velocity(noise, torch.ones(len(noise)), text, None)
        return (noise - velocity - latents).square().flatten(1).mean(1)

    found = coupled(base, data, data.train, encoded, draws, batch=len(data.train), compiled=False)
    latents = data.latents.latents([each.triple_id for each in data.train])
    said, turned_ = zip(*(found[each.triple_id] for each in data.train), strict=True)
    for pairs, condition in ((said, "relational"), (turned_, "neutral")):
        assert torch.allclose(torch.tensor([each.error for each in pairs]), error(pairs, condition), rtol=1e-4)
    assert set(asked) == {words(graph) for each in data.train for graph in (each.graph, each.graph.reversed())}
    random = torch.Generator().manual_seed(0)
    drawn = torch.stack([error(said, "relational", torch.randn(latents.shape, generator=random)) for _ in range(draws)])
    assert (error(said, "relational") < drawn.mean(0)).all()
    assert (error(turned_, "neutral") < error(said, "neutral")).any()
    differ = torch.stack([one.noise != other.noise for one, other in zip(said, turned_, strict=True)]).flatten(1).sum(1)
    assert set(differ.tolist()) <= {0, latents[0].numel() // 16}, "one channel is turned for a graph of one triple"

    kept = coupled(base, data, data.train, encoded, draws, {name: pair[1] for name, pair in found.items()}, len(data.train), False)
    assert all(torch.equal(kept[name][0].noise, pair[1].noise) for name, pair in found.items()), "known noises are not searched for"


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
            three, six = ((_of(given[-1], torch.full((len(images),), channel)) < 0).all(2).all(1).numpy() for channel in (3, 6))
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
