"""Documented calls of single stages, for arms that the pipeline does not have: in a tiny world."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.documented import ran

pytestmark = pytest.mark.slow
TRAINED = {
    "python -m stages.resolve && python -m stages.train_lora --arm one": "one",
    "python -m stages.resolve && python -m stages.train_lora --arm injection": "injection",
    "python -m stages.resolve && python -m stages.train_lora --arm features": "features",
}
"""The arm that each leaves an adapter of."""
SAMPLED = {"python -m stages.sample_images --arm features": "outputs/images/features"}
RUN = (*TRAINED, *SAMPLED)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pipeline with its caches, a reference image, and the arms that the pages add to params.yaml."""
    import yaml
    from msgspec import to_builtins

    from tests.stages.test_caches import set_params
    from tests.stages.test_pipeline import clone
    from tests.tiny import DOUBLE, SIDE, SINGLE, TOKENS
    from tests.training.world import tiny_train, write_world

    made = clone(tmp_path_factory.mktemp("stages") / "project", Path("data"))
    world = write_world(made)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    (made / "references").mkdir()
    Image.fromarray(pixels).save(made / "references/dogs.png")
    listed = {"left of": {"image": "dogs.png", "prompt": "a photo of dog left of cat"}}
    (made / "references/references.json").write_text(json.dumps(listed))
    sections: dict[str, Any] = {
        "backbone": {
            "model": "models/tiny", "files": "models/tiny", "double_blocks": DOUBLE, "single_blocks": SINGLE,
            "resolution": SIDE, "max_sequence_length": TOKENS,
        },
        "lora": {"blocks": "1..2", "rank": 4, "alpha": 4},
        "maps": {"groups": {"middle": "0..1"}},
        "train": to_builtins(tiny_train(epochs=1)),
        "evaluate": {"seeds": [0], "conditions": {"neutral": ["positive", "negative"]}, "steps": 2},
        "compute": {"device": "cpu", "threads": 1},
        "tracking": {"enabled": False},
    }  # fmt: skip
    set_params(made, **sections)
    params = yaml.safe_load((made / "params.yaml").read_text())
    params["arms"] = {
        "one": {"kind": "graph_lora", "triples": [world.data().train[0].triple_id]},
        "injection": {"kind": "relation_injection"},
        "features": {"kind": "feature_injection", "references": "references"},
    }
    params["evaluate"]["adapters"] = {"features": "graphs"}
    del params["ablation"]  # of other arms
    (made / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    return made


def test_an_arm_of_a_page_is_trained_and_sampled(root: Path) -> None:
    for command, arm in TRAINED.items():
        ran(command, root)
        about = json.loads((root / "outputs/lora" / arm / "adapter/adapter.json").read_text())
        assert about["arm"] == arm
    figures = json.loads((root / "metrics/lora/one.json").read_text())
    assert {"trained", "other_relations"} <= set(figures["groups"])
    for command, folder in SAMPLED.items():
        ran(command, root)
        assert list((root / folder).glob("*.parquet")), command
