"""Kind `sgdiff`: a generator of its own stands where an adapter would, from the parameters to the images that are judged."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from msgspec.structs import replace

import stages.train_lora
from sgpipe.arms.adapter import load_adapter
from sgpipe.arms.config import Arms
from sgpipe.arms.external import open_external
from sgpipe.arms.kinds.base import Sections
from sgpipe.arms.resolve import Arm, resolve
from sgpipe.backbones.config import Backbone
from sgpipe.errors import ModelError, ParamsError
from sgpipe.evaluation.arms import LOSSES, arm_figures
from sgpipe.evaluation.sampling import open_generator
from sgpipe.evaluation.sampling_plan import SampleRequest
from sgpipe.graph_encoder.config import GraphTokens
from sgpipe.graphs.scene_graph import SceneGraph
from sgpipe.params.load import decode
from sgpipe.sgdiff.config import SgDiffParams
from sgpipe.sgdiff.model import SgDiff
from tests.sgdiff.small import small
from tests.training.world import LORA, tiny_train

DOG = SceneGraph.of("dog", "left of", "cat")
CPU = torch.device("cpu")
BACKBONE = Backbone(
    model="models/none", files="models/none", double_blocks=2, single_blocks=0, resolution=48, max_sequence_length=8
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its weights that read the graph are large, so that another graph is another image after the codes are rounded."""
    folder = tmp_path_factory.mktemp("sgdiff") / "model"
    model = small(resolution=32)
    with torch.no_grad():
        for name, weight in model.predictor.named_parameters():
            if name.startswith("local") or name.endswith("attn2.to_v.weight"):
                weight *= 60
    model.save(folder)
    return folder


def arm_of(params: SgDiffParams | None, **options: Any) -> Arm:
    arms = decode("arms", {"sgdiff": {"kind": "sgdiff", **options}}, Arms, "params.yaml")
    return resolve("sgdiff", arms["sgdiff"], Sections(LORA, tiny_train(), GraphTokens(), BACKBONE, sgdiff=params))


@pytest.fixture
def recorded(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The adapter's folder, in a working directory where the stage has recorded the arm."""
    monkeypatch.chdir(tmp_path)
    arm = arm_of(SgDiffParams(str(checkpoint), steps=4, eta=0.5))
    stages.train_lora.record_external(Arm.read(json.loads(json.dumps(arm.plain())), "x"), BACKBONE)
    return tmp_path / "outputs/lora/sgdiff/adapter"


def test_parameters_say_which_generator(checkpoint: Path) -> None:
    arm = arm_of(SgDiffParams(str(checkpoint)))
    assert arm.external and arm.plain()["settings"] == {"checkpoint": str(checkpoint), "steps": 200, "eta": 1.0}
    assert arm.kind_class.files(arm.settings) == {"sgdiff.checkpoint": checkpoint}
    for params in (None, SgDiffParams()):
        with pytest.raises(
            ParamsError, match=r"^arms\.sgdiff: kind sgdiff samples with a trained generator; set sgdiff\.checkpoint"
        ):
            arm_of(params)
    with pytest.raises(ParamsError, match=r"^arms\.sgdiff\.seed: got 3; kind sgdiff is not trained"):
        arm_of(SgDiffParams(str(checkpoint)), seed=3)
    with pytest.raises(ParamsError, match=r"^p: sgdiff\.steps: got 7; valid: 1, 2, 4, 5, 8, 10, 20"):
        decode("sgdiff", {"checkpoint": "x", "steps": 7}, SgDiffParams, "p")
    with pytest.raises(ParamsError, match=r"^arms\.sgdiff\.kind: got sgdiff, a generator of its own"):
        arm.adapter  # noqa: B018


def test_its_images_are_sampled_as_those_of_other_arms(
    recorded: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    requests = [SampleRequest("t", "neutral", "positive", 0, "a photo of dog and cat", 5, DOG)]
    generator = open_generator(BACKBONE, recorded, CPU, requests)
    images = generator.sample(["text"] * 2, [DOG, DOG.reversed()], [5, 5], steps=1, size=48)
    assert images.shape == (2, 48, 48, 3) and images.dtype == np.uint8 and not np.array_equal(*images)
    assert "images of 32 px are resized to the 48 px" in capsys.readouterr().err
    own = generator.sample(["other words"], [DOG], [5], steps=9, size=32)
    model = SgDiff.load(checkpoint)
    assert np.array_equal(own, model.sample([DOG], [5], steps=4, eta=0.5))
    assert not np.array_equal(own, model.sample([DOG], [6], steps=4, eta=0.5))
    with pytest.raises(ModelError, match="was never trained without one"):
        generator.sample(["text"], [None], [5], steps=1, size=32)


def test_other_files_than_were_resolved_are_refused(recorded: Path, checkpoint: Path, tmp_path: Path) -> None:
    about = json.loads((recorded / "adapter.json").read_text())
    about["files"]["sgdiff.checkpoint"] = "0" * 16
    (recorded / "adapter.json").write_text(json.dumps(about))
    with pytest.raises(ModelError, match=r"sgdiff\.checkpoint: other files than when it was written; run `dvc repro resolve`"):
        open_external(recorded, CPU)


def test_it_is_no_adapter(recorded: Path) -> None:
    with pytest.raises(ModelError, match=r"arm of kind sgdiff, a generator of its own and no adapter.*`sgpipe sgdiff sample`"):
        load_adapter(recorded, SimpleNamespace(family=None), replace(BACKBONE))  # type: ignore[arg-type]


def test_its_row_has_no_control_losses(recorded: Path) -> None:
    metrics = json.loads((recorded.parents[3] / "metrics/lora/sgdiff.json").read_text())
    row = {"direction_accuracy": 0.75, "direction_accuracy_low": 0.5, "objects_present": 1.0}
    sampled = {"sgdiff": {"neutral": {"positive": row, "negative": row}}}
    found = arm_figures(sampled, {"sgdiff": metrics})["sgdiff"]
    assert found["swap_follow_rate"] == 0.25 and not {f"val_loss_{name}" for name in LOSSES} & found.keys()
