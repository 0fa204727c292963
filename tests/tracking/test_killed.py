"""Stages that are killed, fail, go on or run beside each other: what MLflow then shows of them."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sgpipe.tracking.experiment import close_killed
from sgpipe.tracking.run import FLUSH_SECONDS, track
from sgpipe.tracking.store import open_store
from tests.tracking.repositories import ROOT, run, runs

TRAINING = """
import sys, time
from sgpipe.tracking import run
run.FLUSH_SECONDS = 0.0
first, stop, fingerprint = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
with run.track("toy", {}, fingerprint=fingerprint) as recorded:
    for step in range(first, stop):
        recorded.log_step(step, {"loss/train": 1 / (step + 1)})
    print("there", flush=True)
    if stop < 6:
        time.sleep(600)
"""


def begin(first: int, stop: int, fingerprint: str = "aaaa") -> subprocess.Popen[str]:
    """A process that records steps `first:stop`; it then sleeps until it is killed, or ends with its sixth step."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", TRAINING, str(first), str(stop), fingerprint]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def wait(process: subprocess.Popen[str]) -> None:
    """Until it has recorded its steps."""
    assert process.stdout is not None and process.stdout.readline() == "there\n"


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def states() -> dict[str, list[str]]:
    """Status of the runs of each stage, newest first, and of the experiment."""
    found: dict[str, list[str]] = {}
    for each in runs(Path(), "stage"):
        found.setdefault(each.data.tags["dvc.stage"], []).append(each.info.status)
    return {**found, "experiment": [each.info.status for each in runs(Path(), "experiment")]}


def curve(run_id: str) -> list[tuple[int, float]]:
    client, _ = open_store(Path(), "trial")
    history = client.get_metric_history(run_id, "loss/train")
    return sorted((each.step, each.value) for each in history)


def test_a_killed_stage_is_closed_and_goes_on_with_the_same_curve(stored: Path) -> None:
    process = begin(0, 4)
    wait(process)
    assert states() == {"toy": ["RUNNING"], "experiment": ["RUNNING"]}
    client, experiment = open_store(Path(), "trial")
    assert close_killed(client, experiment, Path()) == 0
    assert states()["toy"] == ["RUNNING"]

    kill(process)
    assert close_killed(client, experiment, Path()) == 1
    assert states() == {"toy": ["KILLED"], "experiment": ["KILLED"]}
    assert not list((stored / ".dvc" / "mlflow-runs").iterdir())

    assert begin(2, 6).wait() == 0
    assert states() == {"toy": ["FINISHED"], "experiment": ["FINISHED"]}
    (child,) = runs(Path(), "stage")
    assert curve(child.info.run_id) == [(step, 1 / (step + 1)) for step in range(6)]


def test_the_next_start_of_any_stage_closes_killed_ones_and_leaves_living_ones(stored: Path) -> None:
    dead, alive = begin(0, 3, "aaaa"), begin(0, 3, "bbbb")
    wait(dead)
    wait(alive)
    kill(dead)
    with track("other", {}):
        pass
    assert sorted(states()["toy"]) == ["KILLED", "RUNNING"]
    assert states()["experiment"] == ["RUNNING"]
    with track("toy", {}, fingerprint="bbbb"):
        pass
    assert sorted(states()["toy"]) == ["FINISHED", "KILLED", "RUNNING"], "it does not write into a living run"
    kill(alive)


def test_other_work_and_finished_work_are_runs_of_their_own(stored: Path) -> None:
    for fingerprint in ("aaaa", "aaaa", "bbbb", None, None):
        with track("toy", {}, fingerprint=fingerprint):
            pass
    assert len(runs(Path(), "stage")) == 5


def test_a_failed_stage_goes_on_with_its_run_and_without_its_error(stored: Path) -> None:
    with pytest.raises(RuntimeError), track("toy", {}, fingerprint="aaaa") as recorded:
        recorded.log_step(0, {"loss/train": 1.0})
        raise RuntimeError("disk full")
    assert states() == {"toy": ["FAILED"], "experiment": ["FAILED"]}
    with track("toy", {}, fingerprint="aaaa") as recorded:
        recorded.log_step(0, {"loss/train": 1.0})
        recorded.log_step(1, {"loss/train": 0.5})
    (child,) = runs(Path(), "stage")
    assert states() == {"toy": ["FINISHED"], "experiment": ["FINISHED"]}
    assert "sgpipe.error" not in child.data.tags
    assert curve(child.info.run_id) == [(0, 1.0), (1, 0.5)]


def test_a_run_recorded_elsewhere_is_not_taken_for_dead(stored: Path) -> None:
    with track("toy", {}):
        for lock in (stored / ".dvc" / "mlflow-runs").iterdir():
            lock.rename(stored / "elsewhere")
        client, experiment = open_store(Path(), "trial")
        assert close_killed(client, experiment, Path()) == 0
        assert states()["toy"] == ["RUNNING"]


def test_an_experiment_has_failed_while_the_newest_run_of_any_stage_has(stored: Path) -> None:
    with pytest.raises(RuntimeError), track("one", {}):
        raise RuntimeError("no")
    with track("two", {}):
        assert states()["experiment"] == ["RUNNING"]
    assert states()["experiment"] == ["FAILED"]
    with track("one", {}):
        pass
    assert states()["experiment"] == ["FINISHED"]


def test_values_wait_no_longer_than_the_interval(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("sgpipe.tracking.run.time.monotonic", lambda: now[0])
    with track("toy", {}) as recorded:
        recorded.log_step(0, {"loss/train": 1.0})
        now[0] += FLUSH_SECONDS - 1
        recorded.log_step(1, {"loss/train": 0.5})
        (child,) = runs(Path(), "stage")
        assert curve(child.info.run_id) == []
        now[0] += 1
        recorded.log_step(2, {"loss/train": 0.25})
        assert curve(child.info.run_id) == [(0, 1.0), (1, 0.5), (2, 0.25)]


def test_the_same_work_in_another_experiment_takes_the_run_along(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Working state is shared between experiments, so the one that goes on has the curve."""
    monkeypatch.setenv("DVC_EXP_NAME", "early")
    with pytest.raises(RuntimeError), track("toy", {}, fingerprint="aaaa") as recorded:
        recorded.log_step(0, {"loss/train": 1.0})
        raise RuntimeError("no")
    monkeypatch.setenv("DVC_EXP_NAME", "late")
    with track("toy", {}, fingerprint="aaaa") as recorded:
        recorded.log_step(0, {"loss/train": 1.0})
        recorded.log_step(1, {"loss/train": 0.5})
    parents = {each.data.tags["dvc.exp_name"]: each for each in runs(Path(), "experiment")}
    (child,) = runs(Path(), "stage")
    assert child.data.tags["mlflow.parentRunId"] == parents["late"].info.run_id
    assert {name: each.info.status for name, each in parents.items()} == {"early": "FAILED", "late": "FINISHED"}
    assert curve(child.info.run_id) == [(0, 1.0), (1, 0.5)]


def test_uncommitted_code_is_another_experiment(stored: Path) -> None:
    run(stored, "git", "init", "-q")
    Path("stages").mkdir()
    for text in ("a = 1\n", "a = 2\n", "a = 2\n"):
        Path("stages/own.py").write_text(text)
        with track("toy", {}):
            pass
    assert len(runs(Path(), "experiment")) == 2
