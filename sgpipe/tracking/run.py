"""Record one stage as a child run of its experiment.

Recording never decides a stage's fate: a store that cannot be reached is reported on stderr once and the stage goes on, since
`sgpipe tracking sync` can rebuild the view from git.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from sgpipe.errors import SgpipeError, first_line
from sgpipe.params.load import read_section, read_yaml, to_builtins
from sgpipe.params.tracking import Tracking
from sgpipe.runs.state import config_hash, file_hash
from sgpipe.tracking.store import lock_path, open_store

BATCH = 500
"""Step metrics are sent in batches of this many values (MLflow takes at most 1000 in one call)."""


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
    return {
        metric_name(k): float(v)
        for k, v in flat.items()
        if isinstance(v, int | float) and not isinstance(v, bool)
    }


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def experiment_tags(root: Path, parameters: Mapping[str, Any]) -> dict[str, str]:
    """Tags that name the experiment a stage belongs to: what DVC says inside `dvc exp run`, else HEAD and the configuration."""
    baseline = os.environ.get("DVC_EXP_BASELINE_REV") or _git(root, "rev-parse", "HEAD") or "no-commit"
    config = config_hash(parameters)
    name = os.environ.get("DVC_EXP_NAME") or f"workspace-{config[:8]}"
    return {"dvc.baseline_rev": baseline, "dvc.exp_name": name, "sgpipe.config": config}


class StageRun:
    """The child run of one stage. Every method is a no-op once recording has failed or is switched off."""

    def __init__(self, client: Any = None, run_id: str = "", parent_id: str = "", stage: str = "") -> None:
        self._client, self._run_id, self._parent_id, self._stage = client, run_id, parent_id, stage
        self._pending: list[Any] = []

    def _give_up(self, error: Exception) -> None:
        print(
            f"warning: stage {self._stage} is no longer recorded in MLflow ({type(error).__name__}: "
            f"{first_line(error)}); results are not affected; "
            "`sgpipe tracking sync` rebuilds the record",
            file=sys.stderr,
        )
        self._client = None

    def log_step(self, step: int, values: Mapping[str, float]) -> None:
        """Queue metrics of one training step; they are sent in batches."""
        if self._client is None:
            return
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._pending += [Metric(metric_name(k), float(v), now, step) for k, v in values.items()]
        if len(self._pending) >= BATCH:
            self.flush()

    def flush(self) -> None:
        """Send queued metrics now."""
        while self._client is not None and self._pending:
            batch, self._pending = self._pending[:BATCH], self._pending[BATCH:]
            try:
                self._client.log_batch(self._run_id, metrics=batch)
            except Exception as error:
                self._give_up(error)

    def log_metrics(self, values: Mapping[str, Any]) -> None:
        """Record final metrics (nested mappings by dotted name) on the stage and, under its name, on the experiment."""
        if self._client is None:
            return
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        flat = list(numbers(values).items())
        prefix = self._stage.replace("@", ".")
        try:
            for start in range(0, len(flat), BATCH):
                part = flat[start : start + BATCH]
                self._client.log_batch(self._run_id, metrics=[Metric(k, v, now, 0) for k, v in part])
                self._client.log_batch(
                    self._parent_id, metrics=[Metric(f"{prefix}.{k}", v, now, 0) for k, v in part]
                )
        except Exception as error:
            self._give_up(error)

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Store a file or a folder with the run."""
        if self._client is None:
            return
        try:
            log = self._client.log_artifacts if path.is_dir() else self._client.log_artifact
            log(self._run_id, str(path), folder)
        except Exception as error:
            self._give_up(error)

    def _end(self, status: str, error: BaseException | None = None) -> None:
        self.flush()
        if self._client is None:
            return
        try:
            if error is not None:
                self._client.set_tag(self._run_id, "sgpipe.error", f"{type(error).__name__}: {error}"[:5000])
            self._client.set_terminated(self._run_id, status)
            self._client.set_terminated(self._parent_id, status)
        except Exception as failure:
            self._give_up(failure)


def find_parent(client: Any, experiment_id: str, tags: Mapping[str, str]) -> str | None:
    """Id of the parent run with these tags, or None."""
    wanted = " and ".join(f"tags.`{k}` = '{v}'" for k, v in tags.items())
    found = client.search_runs(
        [experiment_id], f"{wanted} and tags.`sgpipe.kind` = 'experiment'", max_results=1
    )
    return found[0].info.run_id if found else None


def _chunks(items: Mapping[str, Any]) -> Iterator[list[Any]]:
    from mlflow.entities import Param

    entries = [Param(k, str(v)[:6000]) for k, v in items.items()]
    for start in range(0, len(entries), 100):
        yield entries[start : start + 100]


def _begin(
    stage: str, sections: Mapping[str, Any], inputs: Iterable[Path], params: Path, root: Path
) -> StageRun:
    everything = read_yaml(params)
    tracking = read_section(params, "tracking", Tracking)
    if not tracking.enabled:
        return StageRun()
    plain = {name: to_builtins(section) for name, section in sections.items()}
    tags = experiment_tags(root, everything)
    client, experiment_id = open_store(root, tracking.experiment)
    with FileLock(lock_path(root)):
        parent_id = find_parent(client, experiment_id, tags)
        if parent_id is None:
            parent = client.create_run(
                experiment_id, run_name=tags["dvc.exp_name"], tags={**tags, "sgpipe.kind": "experiment"}
            )
            parent_id = parent.info.run_id
            for batch in _chunks(flatten(everything)):
                client.log_batch(parent_id, params=batch)
    child = client.create_run(
        experiment_id,
        run_name=stage,
        tags={
            **tags,
            "mlflow.parentRunId": parent_id,
            "sgpipe.kind": "stage",
            "dvc.stage": stage,
            "sgpipe.config": config_hash(plain),
            "git.commit": _git(root, "rev-parse", "HEAD"),
            **{f"input.{path.as_posix()}"[:250]: file_hash(path)[:16] for path in inputs if path.exists()},
        },
    )
    for batch in _chunks(flatten(plain)):
        client.log_batch(child.info.run_id, params=batch)
    return StageRun(client, child.info.run_id, parent_id, stage)


@contextmanager
def track(
    stage: str,
    sections: Mapping[str, Any],
    inputs: Iterable[Path] = (),
    params: Path = Path("params.yaml"),
    root: Path = Path(),
) -> Iterator[StageRun]:
    """Record the body as a run of `stage` with its resolved parameter `sections` and the hashes of its `inputs`.

    The run ends FINISHED, or FAILED with the error as a tag when the body raises; the error goes on to the caller.
    """
    try:
        run = _begin(stage, sections, inputs, params, root)
    except SgpipeError:
        raise
    except Exception as error:
        run = StageRun(stage=stage)
        run._give_up(error)
    try:
        yield run
    except BaseException as error:
        run._end("FAILED", error)
        raise
    run._end("FINISHED")
