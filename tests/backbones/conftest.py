"""Tiny pipelines, made once."""

from pathlib import Path

import pytest

from tests.tiny import write_pipeline


@pytest.fixture(scope="session")
def schnell(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like FLUX.1-schnell's; tests copy it before they change it."""
    return write_pipeline(tmp_path_factory.mktemp("tiny") / "schnell")


@pytest.fixture(scope="session")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like FLUX.1-dev's."""
    return write_pipeline(tmp_path_factory.mktemp("tiny") / "dev", dev=True)
