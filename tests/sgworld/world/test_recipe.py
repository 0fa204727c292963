"""The parts of the world's training fit together."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import FluxPipeline

from sgpipe.errors import DataError
from sgpipe.runs.processes import Processes
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


PROGRAM = """
import sys
from pathlib import Path
from sgpipe.optim import engine
from sgpipe.runs.config import Compute
from sgpipe.runs.processes import start
from sgworld.world.generator import LEADING, Phase
from sgworld.world.recipe import BEHIND, DOUBLED, Recipe, train
state, out, begin = map(Path, sys.argv[1:])
average = engine.average_gradients
def counted(weights, processes):
    print("over", processes, flush=True)
    average(weights, processes)
engine.average_gradients = counted
phase = Phase(2, LEADING, DOUBLED, BEHIND, batch=6, behind_alone=True)
recipe = Recipe(captions=6, own_steps=2, texts=4, phases=(phase,), compiled=False)
train(state, out, ("reading", "flux"), recipe, begin, start(Compute(device="cpu")))
"""


@pytest.mark.slow
def test_two_processes_share_the_steps_and_one_of_them_writes(pipeline: FluxPipeline, tmp_path: Path, repo_root: Path) -> None:
    model = build_transformer(5, len(DOUBLED))
    mute(model, BEHIND)
    pipeline.register_modules(transformer=model.half())
    pipeline.save_pretrained(tmp_path / "start")
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    folders = [str(tmp_path / name) for name in ("state", "out", "start")]
    done = subprocess.run(
        [str(Path(sys.executable).with_name("torchrun")), "--nproc-per-node", "2", str(program), *folders],
        capture_output=True, text=True, check=False, cwd=repo_root, timeout=600,
        env={**os.environ, "PYTHONPATH": str(repo_root), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("over 2") == 2 * (2 + 2), "both take every step of both parts, and share it"
    for part in ("reading-own", "flux-0"):
        lines = (tmp_path / "state" / part / "log.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == [2], "one log, of both"
    trained = FluxPipeline.from_pretrained(tmp_path / "out" / "mini-flux").transformer.state_dict()
    changed = {name.split(".")[1] for name, each in model.state_dict().items() if not torch.equal(each, trained[name])}
    assert {"2", "12", "13", "18"} <= changed


def test_other_numbers_of_steps_are_those_of_going_on() -> None:
    recipe = Recipe()
    other = recipe.going_on(30, 12)
    assert (other.own_steps, other.phases[-1].steps, other.phases[-1].decay) == (30, 12, 4)
    assert (other.reading_steps, other.phases[:-1]) == (recipe.reading_steps, recipe.phases[:-1])
    assert recipe.going_on(None, None) == recipe


def test_a_new_generator_is_begun_by_one_process(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="several processes go on from --start"):
        train(tmp_path, tmp_path, ("reading",), Recipe(captions=2), processes=Processes(1, 2, torch.device("cpu")))


def test_a_start_that_does_not_read_by_itself_is_refused(pipeline: FluxPipeline, tmp_path: Path) -> None:
    pipeline.register_modules(transformer=build_transformer(5, len(BLOCKS)))
    pipeline.save_pretrained(tmp_path / "start")
    with pytest.raises(DataError, match="16 or 19 double-stream blocks are needed that read on text rows alone"):
        train(tmp_path / "state", tmp_path / "out", ("flux",), Recipe(captions=2), tmp_path / "start")
