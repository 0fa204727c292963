"""The tiny world that training reads, and one whole training in it, made once."""

from pathlib import Path

import pytest

from sgpipe.training.loop import Training
from tests.training.world import World, tiny_train, train, write_world


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def whole(world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Training]:
    folder = tmp_path_factory.mktemp("whole")
    return folder, train(world, folder, tiny_train(ema_decay=0.9))
