"""Drawing and judging with two processes give the bytes of one at equal threads."""

import sys
from pathlib import Path

import pytest
import yaml

from tests.evaluation.drawn import write_repository
from tests.stages.test_caches import set_params
from tests.stages.test_pipeline import run

pytestmark = pytest.mark.slow


def made(root: Path, launch: str | None) -> dict[str, bytes]:
    """What the two stages write."""
    set_params(root, compute={"device": "cpu", "threads": 1, "launch": launch})
    run(root, sys.executable, "-m", "stages.sample_images", "--arm", "base")
    run(root, sys.executable, "-m", "stages.judge")
    folders = (root / "outputs/images/base", root / "outputs/judged")
    return {str(path.relative_to(root)): path.read_bytes() for f in folders for path in f.iterdir()}


def test_two_processes_draw_and_judge_what_one_does(tmp_path: Path) -> None:
    write_repository(tmp_path)
    params = yaml.safe_load((tmp_path / "params.yaml").read_text())
    params["evaluate"] |= {"conditions": {"neutral": ["positive", "negative"]}, "steps": 1}
    params["judge"] |= {"shard_size": 16}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    alone = made(tmp_path, None)
    assert len(alone) == 6
    assert made(tmp_path, "torchrun --nproc-per-node 2") == alone
