"""A stage that finds all its work done loads no model and no library that only work needs."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from sgpipe.runs import state
from tests.stages.test_caches import COMMANDS, files, set_params, small_repository
from tests.stages.test_heavy_imports import COMPUTING, HEAVY
from tests.stages.test_pipeline import command, environment

pytestmark = pytest.mark.slow
WORDS = {
    "prompts": COMMANDS["prompts"],
    "latents": COMMANDS["latents"],
    "saliency": ("stages.saliency",),
    "saliency_noised": ("stages.saliency_noised",),
}
"""Stages by the folder of their outputs, each after those that it reads."""
RESUMING = {*COMPUTING, "dvc"}
"""What every stage that computes loads, and the module of DVC that says where its cache, and so the working state, is."""
MAY_LOAD = {"prompts": {*RESUMING, "transformers"}}
"""Where the tokenizers tell how many texts are truncated; elsewhere `RESUMING` alone."""
REPORTING = """
import atexit, json, runpy, sys
from pathlib import Path

heavy, out, module, *arguments = sys.argv[1:]
atexit.register(lambda: Path(out).write_text(json.dumps([name for name in heavy.split() if name in sys.modules])))
sys.argv = [module, *arguments]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pipeline's stages run once, with the working states of all of them kept at their ends."""
    root = small_repository(tmp_path_factory.mktemp("idle"))
    set_params(
        root,
        maps={"groups": {"early": "0"}, "batch_size": 8, "side": None},
        saliency={"steps": 1, "images": 1},
        saliency_noised={"conditions": ["relational", "wrong", "neutral"], "times": [0.25]},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state, "shutil", SimpleNamespace(rmtree=lambda folder: None))
        for words in WORDS.values():
            command(root, *words)
    return root


@pytest.mark.parametrize("out", WORDS)
def test_a_stage_without_work_loads_little_and_writes_the_same(done: Path, tmp_path: Path, out: str) -> None:
    made = files(done / "outputs" / out)
    states = shutil.copytree(done / ".dvc/stage-state", tmp_path / "states")
    shutil.rmtree(done / "outputs" / out)
    words = [sys.executable, "-c", REPORTING, " ".join(sorted(HEAVY)), str(tmp_path / "loaded.json"), *WORDS[out]]
    ran = subprocess.run(words, cwd=done, env=environment(), capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert files(done / "outputs" / out) == made
    left = {path.name for path in (done / ".dvc/stage-state").iterdir()}
    assert left < {path.name for path in states.iterdir()}, "it was this state that it found done"
    assert set(json.loads((tmp_path / "loaded.json").read_text())) <= MAY_LOAD.get(out, RESUMING)
