"""The parts of the world's training fit together."""

from pathlib import Path

import pytest
import torch
from diffusers import FluxPipeline

from sgpipe.errors import DataError
from sgworld.flux import build_transformer
from sgworld.world.generator import LEADING, SHIFT, STARTING, Phase
from sgworld.world.hearing import Sounds
from sgworld.world.recipe import BEHIND, BLOCKS, DOUBLED, TOKENS, Recipe, train
from sgworld.world.rows import Reader, mute
from tests.sgworld.world.small import POOL


def test_a_generator_is_taught_to_read_on_and_then_to_draw(pipeline: FluxPipeline, tmp_path: Path) -> None:
    model = build_transformer(5, len(BLOCKS))
    mute(model, BEHIND)
    pipeline.register_modules(transformer=model.half())
    start, state, out = (tmp_path / name for name in ("start", "state", "out"))
    pipeline.save_pretrained(start)
    phases = (Phase(2, STARTING, BLOCKS, BEHIND, batch=4), Phase(1, LEADING, DOUBLED, BEHIND, batch=6, behind_alone=True))
    recipe = Recipe(captions=6, own_steps=2, texts=4, phases=phases, compiled=False)
    _, noise, text, _ = Sounds(POOL, pipeline, 4, 3)[0]

    def told(folder: Path) -> torch.Tensor:
        return Reader(FluxPipeline.from_pretrained(folder).transformer.float(), BEHIND, TOKENS).told(noise, text)[1]

    train(state, out, ("reading", "flux"), recipe, start)
    assert torch.equal(told(out / "mini-flux"), told(state / "reader")) and not torch.equal(told(start), told(state / "reader"))
    trained = FluxPipeline.from_pretrained(out / "mini-flux")
    assert len(trained.transformer.transformer_blocks) == len(DOUBLED) == 19
    assert trained.scheduler.config.shift == SHIFT and not list(out.rglob("mini-clip"))
    train(tmp_path / "other", tmp_path / "drawn", ("flux",), recipe, out / "mini-flux")
    assert torch.equal(told(tmp_path / "drawn" / "mini-flux"), told(out / "mini-flux"))
    assert [each.name for each in sorted((tmp_path / "other").glob("flux-*"))] == ["flux-1"], "with 19 blocks, these go on"


def test_a_start_that_does_not_read_by_itself_is_refused(pipeline: FluxPipeline, tmp_path: Path) -> None:
    pipeline.register_modules(transformer=build_transformer(5, len(BLOCKS)))
    pipeline.save_pretrained(tmp_path / "start")
    with pytest.raises(DataError, match="16 or 19 double-stream blocks are needed that read on text rows alone"):
        train(tmp_path / "state", tmp_path / "out", ("flux",), Recipe(captions=2), tmp_path / "start")
