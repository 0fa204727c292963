"""A tiny generator with an adapter whose weights are random, so that a graph changes its images."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from sgpipe.arms.adapter import save_adapter
from sgpipe.attention_maps.config import Maps
from sgpipe.evaluation.config import Judge as Named
from sgpipe.evaluation.judges import Scores
from sgpipe.evaluation.samples import Pixels
from sgpipe.evaluation.sampling_plan import Triple
from sgpipe.params.blocks import LayerGroup
from sgpipe.playground import engine as playing
from sgpipe.playground.engine import Engine
from tests.training.world import World, tiny_train, write_world

MAPS = Maps({"first": LayerGroup.parse("0"), "rest": LayerGroup.parse("1..2")})


class LeftJudge:
    """Says that whatever comes first in the alphabet is left."""

    def scores(self, images: Pixels, statements: Sequence[Sequence[Triple]]) -> Scores:
        return np.array([[float((s < o) == (p == "left of")) for s, p, o in each] for each in statements], np.float32)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def adapter(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("outputs") / "adapter"
    folder.mkdir()
    train = tiny_train()
    model = world.model(train)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.trainable().values():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
    trained_on = {"names": ["cat", "dog"], "predicates": ["left of", "right of"], "triples": 1}
    save_adapter(folder, model, world.arm(train), world.backbone, {"trained_on": trained_on})
    return folder


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    monkeypatch.setattr(playing, "open_judge", lambda *_: LeftJudge())
    return Engine(MAPS, ("left", Named(kind="left")), size=32)
