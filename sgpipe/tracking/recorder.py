"""Record a stage from a process of its own: importing MLflow and writing its store take seconds, and no stage waits for them.

The recorder is started with the stage and told by a pipe what `StageRun` is told; it goes on after the stage has ended, until all
of it is stored. What it cannot store it says on the stage's stderr. A pipe that closes without an end is a stage that was killed,
so that its curve is whole up to the kill. Files are recorded as they are when the stage names them: they are linked, or copied,
into a folder of the recorder's own, since a stage removes its working state and DVC removes temporary workspaces.
"""

import os
import pickle
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, suppress
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from sgpipe.runs.atomic import link
from sgpipe.runs.state import SHARED, shared_dir
from sgpipe.tracking.run import Description, StageRun, flatten, numbers, open_run, track
from sgpipe.tracking.store import LOCK_SECONDS

NICENESS = 10
"""The recorder gives way to what computes."""


class Call(NamedTuple):
    """A method of `StageRun` and its arguments."""

    method: str
    arguments: tuple[Any, ...]


class Forwarded(StageRun):
    """The run of a stage as the stage sees it: what it is told goes to the recorder."""

    def __init__(self, described: Description, root: Path) -> None:
        super().__init__(stage=described.stage)
        shared = shared_dir(root)
        self._folder, self._files = shared / "mlflow-runs" / f"files-{uuid.uuid4().hex}", 0
        self._folder.mkdir(parents=True)
        command = [sys.executable, "-m", "sgpipe.tracking.recorder"]
        self._process = subprocess.Popen(
            command, cwd=root, env={**os.environ, SHARED: str(shared)},
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        self._client = self._process.stdin
        self._send(described, self._folder)

    def _send(self, *parts: Any) -> None:
        if self._client is None:
            return
        try:
            for part in parts:
                pickle.dump(part, self._client)
            self._client.flush()
        except OSError as error:
            self.give_up(error)
            shutil.rmtree(self._folder, ignore_errors=True)

    def log_step(self, step: int, values: Mapping[str, float], milliseconds: int | None = None) -> None:
        now = int(time.time() * 1000) if milliseconds is None else milliseconds
        self._send(Call("log_step", (step, {name: float(value) for name, value in values.items()}, now)))

    def flush(self) -> None:
        self._send(Call("flush", ()))

    def log_params(self, values: Mapping[str, Any]) -> None:
        self._send(Call("log_params", ({name: str(value) for name, value in flatten(values).items()},)))

    def log_metrics(self, values: Mapping[str, Any]) -> None:
        self._send(Call("log_metrics", (numbers(values),)))

    def _kept(self, path: Path) -> Path | None:
        """The file or folder as it is now, in the recorder's folder; None where that cannot be."""
        kept = self._folder / str(self._files) / path.name
        self._files += 1
        try:
            kept.parent.mkdir(parents=True)
            if path.is_dir():
                shutil.copytree(path, kept, copy_function=link)
            else:
                link(path, kept)
        except OSError as error:
            self.give_up(error)
            return None
        return kept

    def _send_file(self, method: str, path: Path, *more: Any) -> None:
        if self._client is not None and (kept := self._kept(path)) is not None:
            self._send(Call(method, (kept, *more)))

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        self._send_file("log_artifact", path, folder)

    def log_image(self, path: Path, key: str, step: int) -> None:
        self._send_file("log_image", path, key, step)

    def log_model(
        self, folder: Path, loader: str, name: str, step: int, settings: Mapping[str, Any], params: Mapping[str, Any]
    ) -> None:
        self._send_file("log_model", folder, loader, name, step, dict(settings), dict(params))

    def end(self, status: str, root: Path, error: str | None = None) -> None:
        self._send(Call("end", (status, error)))
        if self._client is not None:
            with suppress(OSError):
                self._client.close()


def record(
    stage: str, sections: Mapping[str, Any], inputs: Iterable[Path] = (), fingerprint: str | None = None, root: Path = Path()
) -> AbstractContextManager[StageRun]:
    """`track` the body in the recorder: the stage waits for nothing of it."""
    return track(stage, sections, inputs, root / "params.yaml", root, fingerprint, opened=Forwarded)


def _read(calls: "SimpleQueue[Call]") -> None:
    """Take in what the stage says as it says it, so that the stage never waits; a pipe that ends tells of a kill."""
    with suppress(EOFError, pickle.UnpicklingError):
        while True:
            calls.put(pickle.load(sys.stdin.buffer))
    calls.put(Call("end", ("KILLED", None)))


def main() -> None:
    """Record one stage, of which standard input tells."""
    described, folder = (pickle.load(sys.stdin.buffer) for _ in range(2))
    calls: SimpleQueue[Call] = SimpleQueue()
    Thread(target=partial(_read, calls), daemon=True).start()
    shared = Path(os.environ[SHARED])
    os.chdir(shared)  # the workspace may go away
    os.nice(NICENESS)
    work = described.tags.get("sgpipe.fingerprint", folder.name)
    last = FileLock(folder.with_name(f"{work}.recorder"))
    try:
        with suppress(Timeout):  # of the same work, the recorder of a killed stage stores what it was told first
            last.acquire(timeout=LOCK_SECONDS)
        run = StageRun(stage=described.stage)
        try:
            run = open_run(described, shared)
        except Exception as error:
            run.give_up(error)
        call = calls.get()
        while call.method != "end":
            getattr(run, call.method)(*call.arguments)
            call = calls.get()
        run.end(call.arguments[0], shared, call.arguments[1])
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        Path(last.lock_file).unlink(missing_ok=True)
        last.release()


if __name__ == "__main__":
    main()
