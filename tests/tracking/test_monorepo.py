"""A DVC project in a subfolder of a larger git repository: git's paths are relative to its root, ours to the project's."""

import sys
from pathlib import Path

import pytest

from sgpipe.errors import DataError
from sgpipe.report.sweep import get_outputs, named_experiments
from sgpipe.tracking.git import code_hash, code_hash_at
from sgpipe.tracking.sync import at_commit, recorded_commits, sync
from tests.tracking.repositories import make_repository, run, runs


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with one experiment beside its history, and files of the same names at the root of the git repository."""
    around = tmp_path_factory.mktemp("mono repo")
    (around / "params.yaml").write_text("toy: {rate: 100}\n")
    (around / "metrics").mkdir()
    (around / "metrics/toy.json").write_text('{"score": 100}')
    root = make_repository(around / "research" / "graphs", around)
    (root / "stages").mkdir()
    (root / "stages/own.py").write_text("a = 1\n")
    run(root, sys.executable, "-m", "dvc", "repro", "-q")
    run(around, "git", "add", "-A")
    run(around, "git", "commit", "-qm", "result")
    run(root, sys.executable, "-m", "dvc", "exp", "run", "-q", "-n", "here", "-S", "toy.rate=2")
    return root


def test_commits_are_read_from_the_subfolder(project: Path) -> None:
    by_name = {item.name: at_commit(project, item.commit) for item in recorded_commits(project)}
    assert by_name["here"][0]["toy"] == {"rate": 2} and by_name["here"][1] == {"toy": {"score": 4}}
    assert by_name[None][0]["toy"] == {"rate": 1} and by_name[None][1] == {"toy": {"score": 2}}
    assert code_hash(project) == code_hash_at(project, "HEAD") != code_hash(project.parent)


def test_live_runs_are_joined_and_missing_ones_created(project: Path) -> None:
    assert (sync(project, "trial").joined, len(runs(project, "experiment"))) == (2, 2)
    assert sync(project, "trial").known == 2
    scores = {each.info.run_name: each.data.metrics["toy/score"] for each in runs(project, "experiment")}
    assert scores == {"result": 2, "here": 4}


def test_outputs_of_an_experiment_come_from_the_subfolder(project: Path, tmp_path: Path) -> None:
    (item,) = named_experiments(project, ["he*"])
    get_outputs(project, item, ["outputs/toy"], tmp_path)
    assert (tmp_path / "toy" / "rate.txt").read_text() == "2"


def test_what_is_in_no_cache_is_said(project: Path, tmp_path: Path) -> None:
    (item,) = named_experiments(project, ["here"])
    with pytest.raises(DataError, match="here: outputs/none is not in the DVC cache"):
        get_outputs(project, item, ["outputs/none"], tmp_path)
