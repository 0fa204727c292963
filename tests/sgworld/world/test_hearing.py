"""What the first blocks hear, and that a frozen copy of them keeps it."""

from pathlib import Path

import numpy as np
import torch
from diffusers import FluxPipeline

from sgworld.language import t5_tokenizer
from sgworld.world.generator import velocity_of
from sgworld.world.hearing import HEARD_AS_A_LINE, Ear, Sounds, features, listen, named, said_of, sharpen
from sgworld.world.meaning import LEVELS, cut, levels
from sgworld.world.recipe import TOKENS
from tests.sgworld.world.small import POOL


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


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


def test_an_ear_is_the_generators_first_blocks_and_a_frozen_one_stays(pipeline: FluxPipeline) -> None:
    ear = Ear(pipeline.transformer, 0, TOKENS)
    _, noise, text, _ = Sounds(POOL, pipeline, 4, 3)[0]
    kept, seen = ear.frozen(), {}
    hook = pipeline.transformer.transformer_blocks[0].register_forward_hook(lambda _, __, out: seen.update(words=out[0]))
    with torch.no_grad():
        velocity_of(pipeline.transformer)(noise, torch.ones(4), text)
        hook.remove()
        heard = ear(noise, text)
        assert torch.equal(heard, seen["words"][..., :16].float())
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
