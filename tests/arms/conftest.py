"""The tiny world that arms are built on, made once."""

import pytest

from tests.training.world import World, write_world


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return write_world(tmp_path_factory.mktemp("world"))
