"""Stage `study` from a tiny world's adapter to its metrics and figures."""

import json
from pathlib import Path

import pytest
import yaml
from PIL import Image

import stages.study
from sgpipe.arms.adapter import save_adapter
from sgpipe.errors import ParamsError
from tests.conftest import ROOT
from tests.tiny import DOUBLE, NAMES, SIDE, SINGLE, TOKENS
from tests.training.world import tiny_train, write_world

pytestmark = pytest.mark.slow


def test_an_arm_is_studied_as_the_parameters_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world, folder = write_world(tmp_path), tmp_path / "outputs/lora/graph/adapter"
    folder.mkdir(parents=True)
    train = tiny_train()
    about = {"names": list(NAMES), "predicates": ["left of", "right of", "above", "below", "on", "near"], "triples": 1}
    save_adapter(folder, world.model(train), world.arm(train), world.backbone, {"trained_on": about})
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["backbone"] |= {
        "model": world.backbone.model, "files": world.backbone.model, "double_blocks": DOUBLE, "single_blocks": SINGLE,
        "resolution": SIDE, "max_sequence_length": TOKENS,
    }  # fmt: skip
    params["study"] = {"arms": ["graph"], "seeds": [0, 1]}
    params["statistics"]["resamples"] = 100
    params["compute"] = {"device": "cpu", "threads": 1}
    params["tracking"]["enabled"] = False
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    (tmp_path / ".dvc").mkdir()
    (tmp_path / "metrics").mkdir()
    judges = {params["judge"]["headline"]: {"ground_truth_accuracy": 1.0, "refused": []}}
    (tmp_path / "metrics/evaluation.json").write_text(json.dumps({"judges": judges}))
    for name in ("sgpipe", "sgworld", "stages"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ParamsError, match=r"--arm: got text_only; valid: graph"):
        stages.study.main("text_only")
    stages.study.main("graph")
    out = Path("outputs/study/graph")
    found = json.loads(Path("metrics/study/graph.json").read_text())
    written = json.loads((out / "study.json").read_text())
    assert found["claims"] == written["claims"] and {"consistency", "complexity", "direction"} <= set(found["claims"])
    assert found["config"] and found["seeds"] == 2 and found["judge"] == params["judge"]["headline"]
    assert found["prompts"]["graph"] == found["prompts"]["changed graph"] >= 1
    assert Image.open(out / "claims.png").size[0] > 800 and (out / "objects.png").is_file()
    assert not list(Path(".dvc/stage-state").glob("*/*")), "a finished study leaves no working state"
