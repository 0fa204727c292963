"""What the exploration of arms in the world of several relations gives a generator: noise, phrases and times."""

from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline

from benchmarks.world_arms import VARIANTS, PhraseModel, Phrases, coupled, like
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


def test_a_phrase_is_what_the_text_encoder_reads_between_the_two_names(folder: Path) -> None:
    pipeline = FluxPipeline.from_pretrained(folder)
    text = "a photo of cat in front of dog on a plain background"
    ids = pipeline.tokenizer_2([text], padding="max_length", return_tensors="pt").input_ids
    assert pipeline.tokenizer_2.convert_ids_to_tokens(ids[0])[4:7] == ["▁in", "▁front", "▁of"]
    wanted = pipeline.text_encoder_2(ids)[0][0, 4:7]
    assert torch.allclose(Phrases(folder).rows(("cat", "in front of", "dog")), wanted, atol=1e-5)


def test_phrases_take_the_place_of_padding_and_change_nothing_else(folder: Path, world: World) -> None:
    data, plain, phrases = world.data(), world.model(tiny_train()), Phrases(folder)
    model = PhraseModel(**vars(plain), phrases=phrases)
    texts = [data.train[0].prompts["neutral"]] * 2
    text = data.prompts.get(texts)
    graph, none = data.train[0].graph, SceneGraph()
    width = text.states.shape[-1]
    phrases._known[graph.named[0]] = torch.full((2, width), 7.0)
    told = model.condition([none, graph], texts, text, data.names).states[:, -text.states.shape[1] :]
    before = plain.condition([none, graph], texts, text, data.names).states[:, -text.states.shape[1] :]
    assert torch.equal(told[0], before[0]) and torch.equal(told[1, :-2], before[1, :-2])
    assert (told[1, -2:] == 7).all()


def test_the_search_finds_noises_that_are_drawn_nearer_to_the_crops(world: World) -> None:
    data = world.data()
    few, many = (coupled(world.denoiser(), data, draws, batch=4, compiled=False) for draws in (1, 6))
    assert few[0].keys() == many[0].keys() == {each.triple_id for each in data.train}
    assert many[1] < few[1]


def test_variants_differ_from_the_first_in_one_thing() -> None:
    first, *others = VARIANTS.values()
    assert all(sum(a != b for a, b in zip(vars(first).values(), vars(each).values(), strict=True)) == 1 for each in others)
