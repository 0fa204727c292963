"""One store for all workspaces, created once, with the tags that join it to git and DVC."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sgpipe.tracking.run import flatten, numbers, track
from sgpipe.tracking.store import tracking_uri
from sgpipe.tracking.sync import sync
from tests.tracking.repositories import PARAMS, ROOT, run, runs


@pytest.mark.slow
def test_workspace_and_temporary_runs_land_in_one_store(repository: Path) -> None:
    """`dvc repro`, `exp run` and `exp run --temp` are three experiments side by side; sync joins them to their commits."""
    dvc = (sys.executable, "-m", "dvc")
    run(repository, *dvc, "repro", "-q")
    run(repository, "git", "add", "-A")
    run(repository, "git", "commit", "-qm", "result")
    run(repository, *dvc, "exp", "run", "-q", "-n", "here", "-S", "toy.rate=2")
    run(repository, *dvc, "exp", "run", "-q", "--temp", "-n", "there", "-S", "toy.rate=3")
    head = run(repository, "git", "rev-parse", "HEAD").strip()
    parents = {r.data.tags["dvc.exp_name"]: r for r in runs(repository, "experiment")}
    assert set(parents) >= {"here", "there"} and len(parents) == 3
    assert parents["there"].data.tags["dvc.baseline_rev"] == head
    assert parents["there"].data.metrics["toy/score"] == 6
    assert parents["there"].data.params["toy.rate"] == "3"
    children = runs(repository, "stage")
    assert len(children) == 3
    for child in children:
        assert child.data.tags["dvc.stage"] == "toy"
        assert child.info.status == "FINISHED"
        parent = parents[child.data.tags["dvc.exp_name"]]
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert child.data.tags["input.in.txt"]
        assert len(child.data.tags["sgpipe.config"]) == 16
        assert child.data.metrics["loss"] == pytest.approx(float(child.data.params["toy.rate"]) / 3)
    assert (repository / ".dvc" / "mlflow.db").is_file()
    assert not list((repository / ".dvc" / "tmp").rglob("mlflow.db"))

    first = sync(repository, "trial")
    assert (first.joined, first.created) == (3, 0)
    again = sync(repository, "trial")
    assert (again.joined, again.created, again.known) == (0, 0, 3)


@pytest.mark.slow
def test_the_view_is_rebuilt_from_git_alone(repository: Path) -> None:
    dvc = (sys.executable, "-m", "dvc")
    (repository / "params.yaml").write_text(PARAMS.replace("experiment: trial", "enabled: false, experiment: trial"))
    run(repository, *dvc, "repro", "-q")
    run(repository, "git", "add", "-A")
    run(repository, "git", "commit", "-qm", "result")
    run(repository, *dvc, "exp", "run", "-q", "-n", "here", "-S", "toy.rate=2")
    assert not (repository / ".dvc" / "mlflow.db").exists()
    done = sync(repository, "trial")
    assert (done.created, done.joined, done.known) == (2, 0, 0)
    scores = {r.data.tags["dvc.exp_name"]: r.data.metrics["toy/score"] for r in runs(repository, "experiment")}
    assert scores == {"here": 4, "result": 2}


@pytest.mark.slow
def test_four_processes_may_start_on_a_fresh_store(repository: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    started = [
        subprocess.Popen([sys.executable, "stage.py"], cwd=repository, env=environment, stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    for process in started:
        _, error = process.communicate()
        assert process.returncode == 0 and "no longer recorded" not in error, error
    assert len(runs(repository, "stage")) == 4
    assert len(runs(repository, "experiment")) == 1


def test_a_failing_stage_is_recorded_as_failed(stored: Path) -> None:
    with pytest.raises(RuntimeError, match="boom"), track("toy", {}, root=stored):
        raise RuntimeError("boom")
    (child,) = runs(stored, "stage")
    assert child.info.status == "FAILED"
    assert child.data.tags["sgpipe.error"] == "RuntimeError: boom"


def test_switched_off_records_nothing(stored: Path) -> None:
    database = stored / ".dvc" / "mlflow.db"
    database.unlink()
    (stored / "params.yaml").write_text("tracking: {enabled: false}\n")
    with track("toy", {}, root=stored) as recorded:
        recorded.log_step(0, {"loss": 1.0})
        recorded.log_metrics({"score": 1})
    assert not database.exists()


def test_a_store_out_of_reach_is_said_and_stops_nothing(
    stored: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////proc/nowhere/mlflow.db")
    done = []
    with track("toy", {}, root=stored):
        done.append(1)
    assert done == [1]
    assert "sgpipe tracking sync" in capsys.readouterr().err


def test_the_environment_names_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert tracking_uri(tmp_path) == "http://127.0.0.1:9"


def test_numbers_are_the_numeric_leaves() -> None:
    metrics = {"a": {"b c": 1, "d/e": 0.5}, "f": True, "g": "x", "h": [1, 2]}
    assert numbers(metrics) == {"a.b c": 1.0, "a.d/e": 0.5}
    assert flatten(json.loads('{"a": {"b": {"c": 1}}}')) == {"a.b.c": 1}
