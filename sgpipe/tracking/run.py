"""Record one stage as a child run of its experiment.

Recording never decides a stage's fate: a store that cannot be reached or written is reported on stderr once, within seconds, and
the stage goes on, since `sgpipe tracking sync` can rebuild the view from git.
"""

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast

from filelock import FileLock

from sgpipe.errors import ParamsError, SgpipeError
from sgpipe.params.load import read_section, read_yaml, to_builtins
from sgpipe.runs.config import Tracking
from sgpipe.runs.state import config_hash, file_hash
from sgpipe.tracking import experiment
from sgpipe.tracking.alive import Alive
from sgpipe.tracking.git import said
from sgpipe.tracking.models import log_model
from sgpipe.tracking.store import LOCK_SECONDS, PATIENCE, lock_path, one_line, open_store

BATCH = 500
"""Values sent in one call (MLflow takes at most 1000)."""
FLUSH_SECONDS = 10.0
"""Step metrics wait this long at most, so that a kill loses no more than these seconds of a curve."""
UPLOAD_SECONDS = "60"
"""How long a server that answered just now may take to store a file, where the setting is not the user's own."""
_TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"
Method = TypeVar("Method", bound=Callable[..., None])


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one level of dotted keys; lists stay values."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = value
    return flat


def metric_name(name: str) -> str:
    """`name` with characters that MLflow refuses in metric names replaced by `_`."""
    return "".join(c if c.isalnum() or c in "_-./ " else "_" for c in name)


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """The numeric leaves of nested metrics, by dotted name."""
    flat = flatten(values)
    return {metric_name(k): float(v) for k, v in flat.items() if isinstance(v, int | float) and not isinstance(v, bool)}


def log_params(client: Any, run_id: str, values: Mapping[str, Any]) -> None:
    """Record parameters (nested mappings by dotted name) in batches that MLflow takes."""
    from mlflow.entities import Param

    entries = [Param(name, str(value)[:6000]) for name, value in flatten(values).items()]
    for start in range(0, len(entries), 100):
        client.log_batch(run_id, params=entries[start : start + 100])


def log_values(client: Any, run_id: str, values: Mapping[str, float], milliseconds: int | None = None) -> None:
    """Record values by name at step 0, at this time or another."""
    from mlflow.entities import Metric

    when = int(time.time() * 1000) if milliseconds is None else milliseconds
    found = [Metric(metric_name(name), value, when, 0) for name, value in values.items()]
    for start in range(0, len(found), BATCH):
        client.log_batch(run_id, metrics=found[start : start + BATCH])


def _recording(method: Method) -> Method:
    """A method that does nothing once recording is off, and whose error switches it off."""

    @wraps(method)
    def safe(self: "StageRun", *given: Any, **named: Any) -> None:
        if self._client is None:
            return
        try:
            method(self, *given, **named)
        except Exception as error:
            self.give_up(error)

    return cast(Method, safe)


@dataclass(frozen=True)
class Description:
    """What is known of a run when its stage starts: nothing of it is looked up in the store, and all of it can be pickled."""

    stage: str
    experiment: str
    """Name of the MLflow experiment."""
    parameters: Mapping[str, Any]
    """All of params.yaml."""
    sections: Mapping[str, Any]
    """Resolved sections that the stage reads, plain values."""
    experiment_tags: Mapping[str, str]
    tags: Mapping[str, str]
    milliseconds: int
    """When the stage started, since 1970."""


class StageRun:
    """The child run of one stage. Every method is a no-op once recording has failed or is switched off."""

    def __init__(self, client: Any = None, stage: str = "", alive: Alive | None = None) -> None:
        self._client, self._stage, self._alive = client, stage, alive
        self._run_id = self._parent_id = ""
        self._pending: list[Any] = []
        self._flushed = time.monotonic()
        self._recorded: dict[str, int] | None = None
        """Of a continued run, the last step that was recorded before, by metric."""

    def give_up(self, error: Exception) -> None:
        """Say once why no more is recorded; from now on nothing is."""
        why = str(error) if isinstance(error, SgpipeError) else one_line(error)
        print(
            f"warning: stage {self._stage} is no longer recorded in MLflow ({why}); results are not affected; "
            "`sgpipe tracking sync` rebuilds the record",
            file=sys.stderr,
        )
        self._client = None

    @_recording
    def _join(self, root: Path, experiment_id: str, tags: Mapping[str, str], parameters: Mapping[str, Any]) -> None:
        """Find the experiment's run, or create it."""
        with FileLock(lock_path(root), timeout=LOCK_SECONDS):
            experiment.close_killed(self._client, experiment_id, root)
            key = {name: value for name, value in tags.items() if name != "dvc.exp_name"}
            found = experiment.find_parent(self._client, experiment_id, key, os.environ.get("DVC_EXP_NAME"))
            if found is not None:
                self._parent_id = found
                self._client.update_run(found, status="RUNNING")
                return
            named = {**tags, "sgpipe.kind": "experiment"}
            self._parent_id = self._client.create_run(experiment_id, run_name=tags["dvc.exp_name"], tags=named).info.run_id
            log_params(self._client, self._parent_id, parameters)

    @_recording
    def _open(self, experiment_id: str, tags: Mapping[str, str], parameters: Mapping[str, Any], milliseconds: int) -> None:
        """Continue the interrupted run of the same work, or create one."""
        assert self._alive is not None
        tags = {**tags, experiment.PARENT: self._parent_id, "sgpipe.lock": self._alive.token}
        fingerprint = tags.get("sgpipe.fingerprint")
        found = fingerprint and experiment.find_interrupted(self._client, experiment_id, self._stage, fingerprint)
        if not found:
            created = self._client.create_run(experiment_id, start_time=milliseconds, run_name=self._stage, tags=tags)
            self._run_id = created.info.run_id
            self.log_params(parameters)
            return
        from mlflow.entities import RunTag

        self._run_id, self._recorded = found.info.run_id, {}
        self._client.log_batch(self._run_id, tags=[RunTag(name, value) for name, value in tags.items()])
        if "sgpipe.error" in found.data.tags:
            self._client.delete_tag(self._run_id, "sgpipe.error")
        self._client.update_run(self._run_id, status="RUNNING")

    def _is_new(self, name: str, step: int) -> bool:
        if self._recorded is None:
            return True
        if name not in self._recorded:
            history = self._client.get_metric_history(self._run_id, name)
            self._recorded[name] = max((each.step for each in history), default=-1)
        return step > self._recorded[name]

    @_recording
    def log_step(self, step: int, values: Mapping[str, float], milliseconds: int | None = None) -> None:
        """Queue metrics of one training step, of this time or another; they are sent in batches. Steps that a continued run has
        already are left out.
        """
        from mlflow.entities import Metric

        now = int(time.time() * 1000) if milliseconds is None else milliseconds
        named = {metric_name(key): float(value) for key, value in values.items()}
        self._pending += [Metric(name, value, now, step) for name, value in named.items() if self._is_new(name, step)]
        if len(self._pending) >= BATCH or time.monotonic() - self._flushed >= FLUSH_SECONDS:
            self.flush()

    @_recording
    def flush(self) -> None:
        """Send queued metrics now."""
        self._flushed = time.monotonic()
        while self._pending:
            batch, self._pending = self._pending[:BATCH], self._pending[BATCH:]
            self._client.log_batch(self._run_id, metrics=batch)

    @_recording
    def log_params(self, values: Mapping[str, Any]) -> None:
        """Record facts that are known only now and are one value each (sizes, counts of steps): parameters, not charts."""
        log_params(self._client, self._run_id, values)

    @_recording
    def log_metrics(self, values: Mapping[str, Any]) -> None:
        """Record final metrics (nested mappings by dotted name) on the stage and, in a group of its name, on the experiment."""
        group, found = self._stage.replace("@", "."), numbers(values)
        log_values(self._client, self._run_id, found)
        log_values(self._client, self._parent_id, {f"{group}/{name}": value for name, value in found.items()})

    @contextmanager
    def _uploading(self) -> Iterator[None]:
        """Files may take longer than values, once the server has answered."""
        self._client.get_run(self._run_id)
        before = os.environ[_TIMEOUT]
        os.environ[_TIMEOUT] = UPLOAD_SECONDS if before == PATIENCE[_TIMEOUT] else before
        try:
            yield
        finally:
            os.environ[_TIMEOUT] = before

    @_recording
    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Store a file or a folder with the run."""
        log = self._client.log_artifacts if path.is_dir() else self._client.log_artifact
        with self._uploading():
            log(self._run_id, str(path), folder)

    @_recording
    def log_image(self, path: Path, key: str, step: int) -> None:
        """Store an image file of a training step, on the stage and, in a group of its name, on the experiment, where MLflow shows
        the arms side by side by step. An image that a continued run has already is left out.
        """
        from PIL import Image

        group = self._stage.replace("@", ".")
        with self._uploading(), Image.open(path) as image:
            for run_id, name in ((self._run_id, key), (self._parent_id, f"{group}/{key}")):
                begins = f"images/{name.replace('/', '~')}+step+{step}+"
                if not any(each.path.startswith(begins) for each in self._client.list_artifacts(run_id, "images")):
                    self._client.log_image(run_id, image, key=name, step=step)

    @_recording
    def log_model(
        self, folder: Path, loader: str, name: str, step: int, settings: Mapping[str, Any], params: Mapping[str, Any]
    ) -> None:
        """Store a folder as a logged model, see `models.log_model`."""
        with self._uploading():
            log_model(self._client, self._run_id, folder, loader, name, step, settings, params)

    @_recording
    def _terminate(self, status: str, error: str | None) -> None:
        if error is not None:
            self._client.set_tag(self._run_id, "sgpipe.error", error[:5000])
        self._client.set_terminated(self._run_id, status)

    @_recording
    def _settle(self, root: Path) -> None:
        with FileLock(lock_path(root), timeout=LOCK_SECONDS):
            run = self._client.get_run(self._run_id)
            experiment.settle(self._client, run.info.experiment_id, self._parent_id)

    def end(self, status: str, root: Path, error: str | None = None) -> None:
        """Send what is queued, and set the final status of the run and of its experiment; `error` becomes a tag."""
        self.flush()
        self._terminate(status, error)
        if self._alive is not None:
            self._alive.release(None if self._client is not None or not self._run_id else status)
        self._settle(root)


def _describe(
    stage: str, sections: Mapping[str, Any], inputs: Iterable[Path], params: Path, root: Path, fingerprint: str | None
) -> Description | None:
    """None where tracking is off."""
    everything = read_yaml(params)
    tracking = read_section(params, "tracking", Tracking)
    if not tracking.enabled:
        return None
    plain = {name: to_builtins(section) for name, section in sections.items()}
    tags = {
        "sgpipe.kind": "stage",
        "dvc.stage": stage,
        "sgpipe.config": config_hash(plain),
        "git.commit": said(root, "rev-parse", "HEAD"),
        **{f"input.{path.as_posix()}"[:250]: file_hash(path)[:16] for path in inputs if path.exists()},
        **({} if fingerprint is None else {"sgpipe.fingerprint": fingerprint}),
    }
    shared = experiment.experiment_tags(root, everything)
    return Description(stage, tracking.experiment, everything, plain, shared, tags, int(time.time() * 1000))


def open_run(described: Description, root: Path) -> StageRun:
    """The run of a stage in the store, in this process. Raises `TrackingError` where the store cannot be opened."""
    client, experiment_id = open_store(root, described.experiment)
    run, shared = StageRun(client, described.stage, Alive(root)), described.experiment_tags
    run._join(root, experiment_id, shared, described.parameters)
    run._open(experiment_id, {**shared, **described.tags}, described.sections, described.milliseconds)
    return run


@contextmanager
def track(
    stage: str,
    sections: Mapping[str, Any],
    inputs: Iterable[Path] = (),
    params: Path = Path("params.yaml"),
    root: Path = Path(),
    fingerprint: str | None = None,
    opened: Callable[[Description, Path], StageRun] = open_run,
) -> Iterator[StageRun]:
    """Record the body as a run of `stage` with its resolved parameter `sections` and the hashes of its `inputs`.

    The run ends FINISHED, or FAILED with the error as a tag when the body raises; the error goes on to the caller. A stage that
    keeps working state gives its `fingerprint`: started again after a kill or an error, it continues its run, curves included.
    Stages record with `sgpipe.tracking.recorder.record`, which is the same from a process of its own.
    """
    run = StageRun(stage=stage)
    try:
        if (described := _describe(stage, sections, inputs, params, root, fingerprint)) is not None:
            run = opened(described, root)
    except ParamsError:
        raise
    except Exception as error:
        run.give_up(error)
    try:
        yield run
    except BaseException as error:
        run.end("FAILED", root, f"{type(error).__name__}: {error}")
        raise
    run.end("FINISHED", root)
