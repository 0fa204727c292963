"""Drawing and judging with two processes give the bytes of one at equal threads."""

import sys
from pathlib import Path

import pytest
import yaml

from tests.evaluation.drawn import write_repository
from tests.tracking.repositories import run

pytestmark = pytest.mark.slow
STAGES = """
import stages.judge, stages.sample_images
from tests.evaluation.drawn import call
call(stages.sample_images.main, arm="base")
call(stages.judge.main)
"""


def made(root: Path, *launcher: str) -> dict[str, bytes]:
    """What the two stages write, one after the other in the processes that `launcher` starts."""
    (root / "stages_once.py").write_text(STAGES)
    run(root, *launcher, "stages_once.py")
    folders = (root / "outputs/images/base", root / "outputs/judged")
    return {str(path.relative_to(root)): path.read_bytes() for f in folders for path in f.iterdir()}


def test_two_processes_draw_and_judge_what_one_does(tmp_path: Path) -> None:
    write_repository(tmp_path)
    params = yaml.safe_load((tmp_path / "params.yaml").read_text())
    params["evaluate"] |= {"conditions": {"neutral": ["positive", "negative"]}, "steps": 1}
    params["judge"] |= {"shard_size": 16}
    params["compute"] |= {"device": "cpu", "threads": 1}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    alone = made(tmp_path, sys.executable)
    assert len(alone) == 4
    assert made(tmp_path, str(Path(sys.executable).with_name("torchrun")), "--nproc-per-node", "2") == alone
