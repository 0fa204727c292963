"""A tracking server that is away, mute, broken or dies costs seconds, one line and no result."""

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from mlflow.server import app, handlers
from werkzeug.serving import WSGIRequestHandler, make_server

from sgpipe.tracking.run import StageRun, track
from sgpipe.tracking.store import PATIENCE, lock_path, open_store
from tests.tracking.repositories import runs

SECONDS = 12.0
"""MLflow's own waiting is 253 s; ours is twice three seconds (here twice one)."""
TIMEOUT, RETRIES = "MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_HTTP_REQUEST_MAX_RETRIES"


def test_we_wait_six_seconds_for_a_server() -> None:
    assert int(PATIENCE[TIMEOUT]) * (1 + int(PATIENCE[RETRIES])) == 6 < SECONDS


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A third of the usual wait."""
    monkeypatch.setitem(PATIENCE, TIMEOUT, "1")


class Quiet(WSGIRequestHandler):
    """Writes no log."""

    def log(self, *_: object) -> None:
        """Nothing."""


class Server:
    """MLflow's own server in this process, which can be told to stop answering."""

    def __init__(self) -> None:
        self.mode, self.requests = "ok", 0
        self._over = threading.Event()
        self._server = make_server("127.0.0.1", 0, self, threaded=True, request_handler=Quiet)
        self.uri = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def __call__(self, environ: dict, start_response: Callable) -> Iterable[bytes]:
        self.requests += 1
        if self.mode == "hang":
            self._over.wait(60)
        if self.mode == "ok":
            return app(environ, start_response)
        start_response("500 broken", [("Retry-After", "30")])
        return [b"broken"]

    def die(self) -> None:
        """Close the port, if it is open."""
        self._over.set()
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server(stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Serves the store of the working directory, and stands in the environment."""
    monkeypatch.setattr(handlers, "_tracking_store", None)
    handlers.initialize_backend_stores(
        f"sqlite:///{stored / '.dvc' / 'mlflow.db'}", default_artifact_root=str(tmp_path / "artifacts")
    )
    running = Server()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", running.uri)
    yield running
    running.die()


def record(during: Callable[[StageRun], object] = lambda run: None) -> tuple[list[int], float]:
    """The work that a recorded stage did, and the seconds that it took."""
    done: list[int] = []
    start = time.perf_counter()
    with track("toy", {}, fingerprint="0123") as recorded:
        for step in range(3):
            recorded.log_step(step, {"loss/train": 1.0 / (step + 1)})
            done.append(step)
        recorded.flush()
        during(recorded)
        for step in range(3, 6):
            recorded.log_step(step, {"loss/train": 1.0 / (step + 1)})
            recorded.flush()
            done.append(step)
        recorded.log_metrics({"score": 1})
        recorded.log_artifact(Path("in.txt"))
    return done, time.perf_counter() - start


def test_a_server_that_works_is_written_to(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    done, _ = record()
    assert done == [0, 1, 2, 3, 4, 5] and capsys.readouterr().err == ""
    (child,), (parent,) = runs(Path(), "stage"), runs(Path(), "experiment")
    assert child.info.status == parent.info.status == "FINISHED"
    client, _ = open_store(Path(), "trial")
    history = client.get_metric_history(child.info.run_id, "loss/train")
    assert [(each.step, each.value) for each in history] == [(step, 1.0 / (step + 1)) for step in range(6)]
    assert [each.path for each in client.list_artifacts(child.info.run_id)] == ["in.txt"]


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("mode", ["away", "hang", "500"])
def test_a_server_that_does_not_answer_costs_seconds_and_one_line(
    server: Server, mode: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor does anybody wait for the lock of the stores meanwhile."""
    server.mode = mode
    if mode == "away":
        server.die()
    done, seconds = record()
    assert done == [0, 1, 2, 3, 4, 5]
    assert seconds < SECONDS
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "sgpipe tracking sync" in said[0] and server.uri in said[0]
    assert server.requests <= 2
    assert not lock_path(Path()).exists()


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("mode", ["away", "hang", "500"])
def test_a_server_that_dies_during_a_stage_costs_seconds_and_the_run_is_ended_later(
    server: Server, mode: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_off(run: StageRun) -> None:
        server.mode = mode
        if mode == "away":
            server.die()

    done, seconds = record(break_off)
    assert done == [0, 1, 2, 3, 4, 5]
    assert seconds < SECONDS
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "sgpipe tracking sync" in said[0]

    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    (child,) = runs(Path(), "stage")
    assert child.info.status == "RUNNING" and child.data.metrics["loss/train"] == 1 / 3
    with track("other", {}):
        pass
    ended = {run.data.tags["dvc.stage"]: run.info.status for run in runs(Path(), "stage")}
    assert ended == {"toy": "FINISHED", "other": "FINISHED"}


def test_the_environment_sets_how_long_a_server_may_take(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RETRIES, "0")
    server.mode = "500"
    record()
    assert server.requests == 1


def test_an_upload_may_take_longer_than_a_probe(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of many megabytes is stored slowly by a server that answers at once; afterwards the short wait is back."""
    waits: list[str] = []
    with track("toy", {}) as recorded:
        monkeypatch.setattr(recorded._client, "log_artifact", lambda *_: waits.append(os.environ[TIMEOUT]))
        recorded.log_artifact(Path("in.txt"))
        waits.append(os.environ[TIMEOUT])
    assert waits == ["60", "3"]
