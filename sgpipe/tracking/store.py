"""Where runs are recorded: one SQLite store beside the shared DVC cache, or the server that `MLFLOW_TRACKING_URI` names."""

import logging
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from sgpipe.errors import SgpipeError, TrackingError, first_line
from sgpipe.runs.state import shared_dir

if TYPE_CHECKING:
    from mlflow import MlflowClient

TRACKING_URI = "MLFLOW_TRACKING_URI"
LOCK_SECONDS = 60
"""How long another process may take to create the store or a parent run."""
PATIENCE = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "3",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}
"""MLflow's settings where the environment says nothing; its own wait 253 s for a server that is away."""
SQLITE_SECONDS = 5
QUIET = {"alembic": logging.WARNING, "mlflow.store.db.utils": logging.CRITICAL, "urllib3.connectionpool": logging.ERROR}
"""Loggers that tell in many lines what is said here in one."""


def lock_path(root: Path) -> Path:
    """Lock that guards creating the store and finding or creating a parent run, across all workspaces."""
    return shared_dir(root) / "mlflow.lock"


def tracking_uri(root: Path) -> str:
    """`MLFLOW_TRACKING_URI` if set, else SQLite at an absolute path that temporary workspaces share."""
    return os.environ.get(TRACKING_URI) or f"sqlite:///{shared_dir(root) / 'mlflow.db'}"


def one_line(error: BaseException) -> str:
    """Type and first line of an error."""
    kind, first = type(error).__name__, first_line(error)
    return kind if first == kind else f"{kind}: {first}"


@contextmanager
def told_in_a_line(root: Path, remedy: str = "") -> Iterator[None]:
    """Errors of the libraries in the body as a `TrackingError` of one line that names the store."""
    try:
        yield
    except SgpipeError:
        raise
    except Exception as error:
        raise TrackingError(f"{tracking_uri(root)}: {one_line(error)}{remedy}") from error


def _check_sqlite(uri: str) -> None:
    """Raises `TrackingError` for a file that cannot be written now: MLflow tries ten times, which takes 102 s."""
    from sqlalchemy.engine import make_url

    path = make_url(uri).database
    if not path or path == ":memory:":
        return
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    try:
        with closing(sqlite3.connect(path, timeout=SQLITE_SECONDS, isolation_level=None)) as database:
            database.execute("BEGIN IMMEDIATE")
            database.execute("ROLLBACK")
        if not os.access(path, os.W_OK):
            raise sqlite3.OperationalError("no permission to write it")
    except sqlite3.Error as error:
        raise TrackingError(
            f"{path}: {error}; close what holds it, get write access, or move it away if it is damaged (`sgpipe tracking sync` "
            f"makes a new one), or set {TRACKING_URI}"
        ) from None


def open_store(root: Path, experiment: str) -> tuple["MlflowClient", str]:
    """A client and the id of `experiment`, both created if absent.

    A server is asked before any lock is taken, and answers within seconds or not at all (`PATIENCE`). Creating tables in a fresh
    SQLite file is not safe between processes (three of four crash), so it happens under a lock. Raises `TrackingError` for a
    store that cannot be reached or written, is of another MLflow version, or has the experiment deleted.
    """
    for name, value in PATIENCE.items():
        os.environ.setdefault(name, value)
    for name, level in QUIET.items():
        logging.getLogger(name).setLevel(level)
    with told_in_a_line(root):
        from mlflow import MlflowClient

        uri, shared = tracking_uri(root), shared_dir(root)
        shared.mkdir(parents=True, exist_ok=True)
        local = uri.startswith("sqlite:")
        found = None if local else MlflowClient(uri).get_experiment_by_name(experiment)
        with FileLock(lock_path(root), timeout=LOCK_SECONDS):
            if local:
                _check_sqlite(uri)
            client = MlflowClient(uri)
            found = found or client.get_experiment_by_name(experiment)
            if found is None:
                artifacts = (shared / "mlflow-artifacts" / experiment).as_uri() if local else None
                return client, client.create_experiment(experiment, artifact_location=artifacts)
        if found.lifecycle_stage == "deleted":
            raise TrackingError(
                f"tracking.experiment: {experiment!r} is deleted in {uri}; `{TRACKING_URI}='{uri}' mlflow experiments restore "
                f"-x {found.experiment_id}`, or set another name"
            )
        return client, found.experiment_id


def runs_page(address: str, experiment_id: str) -> str:
    """The page of an experiment's runs in MLflow's view for model training.

    MLflow 3.17 opens every experiment in its view for language models unless the address or the browser says otherwise; it heeds
    no tag (`mlflow.experimentKind` neither).
    """
    return f"{address.rstrip('/')}/#/experiments/{experiment_id}/runs?workflowType=machine_learning"
