"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests with a timeout of their own, the long ones, come first, so that no worker ends on one."""
    items.sort(key=lambda item: item.get_closest_marker("timeout") is None)


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """The repository the tests belong to."""
    return ROOT


@pytest.fixture(scope="session")
def reference_dir() -> Path:
    """Third-party golden vectors and annotations, named by `SGPIPE_REFERENCE`; tests that need them skip without."""
    folder = Path(os.environ.get("SGPIPE_REFERENCE", ROOT.parent / "shared"))
    if not (folder / "golden").is_dir():
        pytest.skip(f"reference data is absent: no {folder}/golden (set SGPIPE_REFERENCE)")
    return folder
