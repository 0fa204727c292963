"""Repositories without a store of the environment."""

import shutil
from pathlib import Path

import pytest

from sgpipe.tracking.store import PATIENCE, open_store
from tests.tracking.repositories import make_repository, write_plain_params


@pytest.fixture(autouse=True)
def _no_ambient_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a store nor waiting times from the environment; what `open_store` sets is taken back."""
    for name in ("MLFLOW_TRACKING_URI", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV", *PATIENCE):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def blank_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite store with its tables: making them takes seconds, copying them does not."""
    root = tmp_path_factory.mktemp("blank")
    open_store(root, "trial")
    return root / ".dvc" / "mlflow.db"


@pytest.fixture(scope="session")
def new_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_repository(tmp_path_factory.mktemp("new") / "repository")


@pytest.fixture
def repository(tmp_path: Path, new_repository: Path) -> Path:
    """A git and DVC repository with one toy stage, committed."""
    return shutil.copytree(new_repository, tmp_path / "with space", symlinks=True)


@pytest.fixture
def stored(tmp_path: Path, blank_store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: neither git nor DVC, parameters of tracking alone, an empty store."""
    root = tmp_path / "work"
    (root / ".dvc").mkdir(parents=True)
    shutil.copy(blank_store, root / ".dvc" / "mlflow.db")
    write_plain_params(root)
    (root / "in.txt").write_text("1")
    monkeypatch.chdir(root)
    return root
