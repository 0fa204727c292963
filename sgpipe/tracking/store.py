"""Where runs are recorded: one SQLite store beside the shared DVC cache, or the server that `MLFLOW_TRACKING_URI` names."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from sgpipe.runs.state import shared_dir

if TYPE_CHECKING:
    from mlflow import MlflowClient

TRACKING_URI = "MLFLOW_TRACKING_URI"


def lock_path(root: Path) -> Path:
    """Lock that guards creating the store and finding or creating a parent run, across all workspaces."""
    return shared_dir(root) / "mlflow.lock"


def tracking_uri(root: Path) -> str:
    """`MLFLOW_TRACKING_URI` if set, else SQLite at an absolute path that temporary workspaces share."""
    return os.environ.get(TRACKING_URI) or f"sqlite:///{shared_dir(root) / 'mlflow.db'}"


def open_store(root: Path, experiment: str) -> tuple["MlflowClient", str]:
    """A client and the id of `experiment`, both created if absent.

    Creating tables in a fresh SQLite file is not safe between processes (three of four crash), so it happens under a lock.
    """
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    import logging

    logging.getLogger("alembic").setLevel(logging.WARNING)
    from mlflow import MlflowClient

    shared_dir(root).mkdir(parents=True, exist_ok=True)
    uri = tracking_uri(root)
    with FileLock(lock_path(root)):
        client = MlflowClient(tracking_uri=uri)
        found = client.get_experiment_by_name(experiment)
        if found is not None:
            return client, found.experiment_id
        local = uri.startswith("sqlite:")
        artifacts = (shared_dir(root) / "mlflow-artifacts" / experiment).as_uri() if local else None
        return client, client.create_experiment(experiment, artifact_location=artifacts)
