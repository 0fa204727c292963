"""A stage that records from a process of its own: it waits for nothing, and nothing of its record is lost."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sgpipe.tracking.recorder import record
from sgpipe.tracking.store import open_store
from tests.tracking.repositories import ROOT, runs, write_plain_params

STAGE = """
import sys, time
from pathlib import Path
from PIL import Image
from sgpipe.tracking.recorder import record
first, stop, end = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
with record("toy", {"toy": {"rate": 1}}, fingerprint="aaaa") as recorded:
    for step in range(first, stop):
        recorded.log_step(step, {"loss/train": 1 / (step + 1)})
    if end == "sleeps":
        print("there", flush=True)
        time.sleep(600)
    Path("made").mkdir()
    Path("made/weights.txt").write_text("1")
    Path("sheet.txt").write_text("2")
    recorded.log_params({"steps": stop})
    recorded.log_metrics({"score": 2, "by": {"left of": 1}})
    recorded.log_artifact(Path("made"), "adapter")
    recorded.log_artifact(Path("sheet.txt"))
    Path("sheet.txt").unlink()
    Image.new("RGB", (4, 4), "red").save("sheet.png")
    recorded.log_image(Path("sheet.png"), "samples", 2)
    Path("sheet.png").unlink()
    recorded.log_model(Path("made"), "json", "graph", stop, {}, {"kind": "graph_lora"})
assert "mlflow" not in sys.modules
"""


def begin(first: int, stop: int, end: str, stderr: int | None = None) -> subprocess.Popen[str]:
    """A stage that records steps `first:stop`, and ends or sleeps."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", STAGE, str(first), str(stop), end]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=stderr, text=True)


def curve(run_id: str) -> list[tuple[int, float]]:
    client, _ = open_store(Path(), "trial")
    return sorted((each.step, each.value) for each in client.get_metric_history(run_id, "loss/train"))


def wait_for_recorders(root: Path) -> None:
    """Until the files of every recorder are gone, with which it ends."""
    ended = time.monotonic() + 300
    while any(path for path in (root / ".dvc" / "mlflow-runs").iterdir()):
        assert time.monotonic() < ended
        time.sleep(0.1)


def test_all_that_a_stage_says_is_stored_though_its_workspace_goes_away(stored: Path, tmp_path: Path) -> None:
    """As `dvc exp run --temp` has it: the cache, and with it the store, is elsewhere."""
    workspace = tmp_path / "temporary"
    (workspace / ".dvc").mkdir(parents=True)
    (workspace / ".dvc" / "config").write_text(f"[cache]\n    dir = {stored / '.dvc' / 'cache'}\n")
    write_plain_params(workspace)
    os.chdir(workspace)
    assert begin(0, 3, "ends").wait() == 0
    os.chdir(stored)
    for path in sorted(workspace.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    wait_for_recorders(stored)
    (child,), (parent,) = runs(Path(), "stage"), runs(Path(), "experiment")
    assert child.info.status == parent.info.status == "FINISHED"
    assert curve(child.info.run_id) == [(0, 1.0), (1, 1 / 2), (2, 1 / 3)]
    assert child.data.params == {"toy.rate": "1", "steps": "3"}
    assert child.data.metrics["score"] == 2 and parent.data.metrics["toy/by.left of"] == 1
    client, _ = open_store(Path(), "trial")
    assert [each.path for each in client.list_artifacts(child.info.run_id, "adapter")] == ["adapter/weights.txt"]
    assert "sheet.txt" in [each.path for each in client.list_artifacts(child.info.run_id)]
    for run, name in ((child, "samples"), (parent, "toy~samples")):
        assert any(f"{name}+step+2+" in each.path for each in client.list_artifacts(run.info.run_id, "images"))
    (output,) = child.outputs.model_outputs
    model = client.get_logged_model(output.model_id)
    assert (model.name, model.params, output.step) == ("graph", {"kind": "graph_lora"}, 3)


def test_a_stage_that_is_killed_is_said_to_be_and_goes_on_with_its_run_at_once(stored: Path) -> None:
    """Not a step of its curve is missing, however soon after the steps the kill was, and however soon it is started again."""
    process = begin(0, 4, "sleeps")
    assert process.stdout is not None and process.stdout.readline() == "there\n"
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert begin(2, 6, "ends").wait() == 0
    wait_for_recorders(stored)
    (child,) = runs(Path(), "stage")
    assert child.info.status == "FINISHED"
    assert curve(child.info.run_id) == [(step, 1 / (step + 1)) for step in range(6)]


def test_a_store_that_cannot_be_opened_is_said_in_one_line_of_the_stage(stored: Path) -> None:
    (stored / ".dvc" / "mlflow.db").write_text("no database")
    process = begin(0, 3, "ends", subprocess.PIPE)
    _, said = process.communicate()
    assert process.returncode == 0
    assert len(said.splitlines()) == 1 and "sgpipe tracking sync" in said and "toy" in said


def test_a_recorder_that_is_gone_is_said_once_and_stops_nothing(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with record("toy", {}) as recorded:
        recorded._process.kill()  # type: ignore[attr-defined]
        recorded._process.wait()  # type: ignore[attr-defined]
        for step in range(3):
            recorded.log_step(step, {"loss/train": 1.0})
        recorded.log_artifact(Path("in.txt"))
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "stage toy is no longer recorded" in said[0]


def test_an_error_of_the_stage_is_recorded(stored: Path) -> None:
    with pytest.raises(RuntimeError), record("toy", {}):
        raise RuntimeError("disk full")
    wait_for_recorders(stored)
    (child,) = runs(Path(), "stage")
    assert (child.info.status, child.data.tags["sgpipe.error"]) == ("FAILED", "RuntimeError: disk full")
