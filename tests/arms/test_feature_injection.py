"""Kind `feature_injection`: whose features are written where, and that the base is left alone elsewhere."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import stages.train_lora
from sgpipe.arms.adapter import load_adapter
from sgpipe.arms.config import Arms
from sgpipe.arms.external import open_external
from sgpipe.arms.generation import GraphGenerator
from sgpipe.arms.kinds.base import Sections
from sgpipe.arms.kinds.feature_injection import FILE, Injected
from sgpipe.arms.resolve import Arm, resolve
from sgpipe.backbones.rectified_flow import interpolate, noise
from sgpipe.errors import DataError, ModelError, ParamsError
from sgpipe.graphs.scene_graph import SceneGraph
from sgpipe.params.load import decode
from tests.tiny import SIDE
from tests.training.world import LORA, TOKENS, World, tiny_train

CPU = torch.device("cpu")
TEXT = "a photo of dog and cat"


@pytest.fixture
def references(tmp_path: Path) -> Path:
    """One of two classes."""
    folder = tmp_path / "references"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(folder / "above.png")
    listed = {"above": {"image": "above.png", "prompt": "a photo of horse above tree"}}
    (folder / FILE).write_text(json.dumps(listed))
    return folder


def arm_of(world: World, references: Path, **options: Any) -> Arm:
    given = {"kind": "feature_injection", "references": str(references), **options}
    arms = decode("arms", {"mine": given}, Arms, "params.yaml")
    return resolve("mine", arms["mine"], Sections(LORA, tiny_train(), TOKENS, world.backbone))


def opened(arm: Arm) -> Injected:
    generator = arm.kind_class.open(arm.settings, CPU)  # type: ignore[attr-defined]
    assert isinstance(generator, Injected)
    return generator


def test_features_go_into_images_of_the_class_and_into_no_others(
    world: World, references: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generator = opened(arm_of(world, references))
    graphs = [SceneGraph.of("dog", "above", "cat"), SceneGraph(), SceneGraph.of("dog", "left of", "cat")]
    images = generator.sample([TEXT] * 3, graphs, [1, 1, 1], steps=4, size=SIDE)
    base = GraphGenerator.load(world.backbone.model, None, backbone=world.backbone).sample([TEXT], [None], [1], steps=4, size=SIDE)
    moved = [float((each != base[0]).mean()) for each in images]
    assert moved[0] > 0 and max(moved[1:]) < moved[0] / 10, "but for values that a batch of three rounds otherwise than one image"
    assert capsys.readouterr().err.count("no reference shows 'left of': its images are the base's") == 1
    late = opened(arm_of(world, references, low=0.99)).sample([TEXT], graphs[:1], [1], steps=4, size=SIDE)
    weak = opened(arm_of(world, references, weight=0.05)).sample([TEXT], graphs[:1], [1], steps=4, size=SIDE)
    change = [np.abs(each.astype(int) - base[0]).mean() for each in (weak[0], images[0])]
    assert 0 < change[0] < change[1], "a smaller weight changes less"
    own = [np.abs(each[0].astype(int) - base[0]).mean() for each in (late, images[:1])]
    assert own[0] < own[1], "at t = 1 the reference is noise; only its prompt differs"
    with pytest.raises(ModelError, match=r"^sample: got no graph"):
        generator.sample([TEXT], [None], [1], steps=1, size=SIDE)


@torch.no_grad()
def test_features_of_the_very_same_forward_change_nothing_and_hooks_are_gone(world: World, references: Path) -> None:
    generator = opened(arm_of(world, references, weight=1, blocks="0..2"))
    denoiser, t = generator.base.denoiser, torch.tensor([0.6])
    shown = generator._encoded("above", SIDE)
    start, told = noise([3], denoiser.layout.latent_shape(SIDE)), generator.base.texts.prompts(["a photo of horse above tree"])
    features = generator.features(shown, start, t, told)
    plain = denoiser.velocity(interpolate(shown, start, t), t, told)
    assert len(features) == 3
    with generator.writing(features):
        assert torch.equal(denoiser.velocity(interpolate(shown, start, t), t, told), plain)
    other = generator.features(shown, noise([4], denoiser.layout.latent_shape(SIDE)), t, told)
    with generator.writing(other):
        assert not torch.equal(denoiser.velocity(interpolate(shown, start, t), t, told), plain)
    assert torch.equal(denoiser.velocity(interpolate(shown, start, t), t, told), plain)


def test_it_is_recorded_with_its_references_and_sampled_as_other_generators(
    world: World, references: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arm = arm_of(world, references)
    stages.train_lora.record_external(Arm.read(json.loads(json.dumps(arm.plain())), "x"), world.backbone)
    folder = tmp_path / "outputs/lora/mine/adapter"
    assert isinstance(open_external(folder, CPU), Injected)
    with pytest.raises(ModelError, match=r"kind feature_injection, a generator of its own.*`dvc repro sample_images`"):
        load_adapter(folder, world.denoiser(), world.backbone)
    (references / FILE).write_text('{"above": 3}')
    with pytest.raises(ModelError, match=r"references: other files than when it was written"):
        open_external(folder, CPU)
    with pytest.raises(DataError, match=r"references\.json: no references \("):
        opened(arm)


@pytest.mark.parametrize(
    "options, says",
    [
        ({"blocks": "none"}, r"^arms\.mine\.blocks: got none; kind feature_injection writes features into double-stream blocks"),
        ({"blocks": "2..9"}, r"^arms\.mine\.blocks"),
        ({"seed": 1}, r"^arms\.mine\.seed: got 1; kind feature_injection trains nothing"),
        ({"weight": 0}, r"^params\.yaml: arms\.mine\.weight"),
    ],
)
def test_what_it_cannot_do_is_refused(world: World, references: Path, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ParamsError, match=says):
        arm_of(world, references, **options)
