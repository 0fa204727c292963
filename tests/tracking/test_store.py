"""Stores that cannot be used: one line each, at once; a stage goes on, `tracking sync` ends."""

import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sgpipe.errors import TrackingError
from sgpipe.tracking import store
from sgpipe.tracking.run import track
from sgpipe.tracking.store import open_store
from sgpipe.tracking.sync import sync
from tests.tracking.repositories import ROOT, run, runs


def delete_experiment(database: Path) -> None:
    client, experiment = open_store(Path(), "trial")
    client.delete_experiment(experiment)


def from_another_version(database: Path) -> None:
    """The revision of a version that this one does not know."""
    with sqlite3.connect(database) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'fedcba987654'")


def damage(database: Path) -> None:
    database.write_bytes(b"no database\n" * 500)


def folder_for_database(database: Path) -> None:
    database.unlink()
    database.mkdir()


def folder_for_lock(database: Path) -> None:
    (database.parent / "mlflow.lock").mkdir()


def folder_of_locks_is_a_file(database: Path) -> None:
    (database.parent / "mlflow-runs").write_text("")


BROKEN = {
    delete_experiment: "mlflow experiments restore",
    from_another_version: "fedcba987654",
    damage: "mlflow.db: file is not a database",
    folder_for_database: "mlflow.db: unable to open database file",
    folder_for_lock: "mlflow.lock",
}


def broken(stored: Path, breaking: Callable[[Path], None]) -> None:
    (stored / ".dvc" / "mlflow.lock").unlink(missing_ok=True)
    breaking(stored / ".dvc" / "mlflow.db")


@pytest.mark.parametrize("breaking", [*BROKEN, folder_of_locks_is_a_file], ids=lambda each: each.__name__)
def test_a_stage_goes_on_without_a_store_that_cannot_be_used(
    stored: Path, breaking: Callable[[Path], None], capfd: pytest.CaptureFixture[str]
) -> None:
    broken(stored, breaking)
    start = time.perf_counter()
    with track("toy", {}) as recorded:
        recorded.log_step(0, {"loss": 1.0})
        recorded.log_metrics({"score": 1.0})
        recorded.log_artifact(Path("in.txt"))
        done = True
    assert done and time.perf_counter() - start < 10
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 1 and "results are not affected" in said[0]
    assert BROKEN.get(breaking, "mlflow-runs") in said[0]
    if breaking is folder_of_locks_is_a_file:
        assert runs(stored, "experiment") == []


@pytest.mark.parametrize("breaking", BROKEN, ids=lambda each: each.__name__)
def test_sync_says_in_one_line_what_is_wrong_with_the_store(stored: Path, breaking: Callable[[Path], None]) -> None:
    broken(stored, breaking)
    with pytest.raises(TrackingError) as raised:
        sync(stored, "trial")
    assert BROKEN[breaking] in str(raised.value) and "\n" not in str(raised.value)


def test_a_locked_database_is_waited_for_and_then_said(
    stored: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(store, "SQLITE_SECONDS", 0.2)
    holder = sqlite3.connect(stored / ".dvc" / "mlflow.db", isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(TrackingError, match=r"mlflow\.db: database is locked; close what holds it"):
        sync(stored, "trial")
    with track("toy", {}):
        pass
    holder.close()
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 1 and "database is locked" in said[0]


def test_a_database_of_another_user_is_said(
    stored: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """SQLite begins a transaction in a file that it may only read, and fails at the first write."""
    monkeypatch.setattr("os.access", lambda path, mode: not str(path).endswith("mlflow.db"))
    with track("toy", {}):
        pass
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 1 and "mlflow.db: no permission to write it" in said[0]


def test_the_command_ends_in_one_line(stored: Path) -> None:
    broken(stored, damage)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-m", "sgpipe.cli", "tracking", "sync"], capture_output=True, text=True, env=environment)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


WITHOUT = """
import sys
from sgpipe.tracking.run import StageRun, track
with track("toy", {}) as recorded:
    recorded.log_step(0, {"loss": 1.0})
    recorded.log_params({"steps": 1})
    recorded.log_metrics({"score": 1.0})
StageRun().log_step(0, {"loss": 1.0})
print([name for name in sys.modules if name.split(".")[0] in ("mlflow", "sqlalchemy", "pandas")])
"""


def test_recording_that_is_off_imports_no_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its import takes seconds."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "params.yaml").write_text("tracking: {enabled: false}\n")
    assert run(tmp_path, sys.executable, "-c", WITHOUT).strip() == "[]"
