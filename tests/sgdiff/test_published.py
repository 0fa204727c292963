"""Published checkpoints: every name and shape covered, everything else refused, nothing run."""

import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sgpipe.errors import DataError, ModelError
from sgpipe.graph_encoder.cgip import Cgip, CgipConfig
from sgpipe.graphs.scene_graph import SceneGraph
from sgpipe.sgdiff.model import SgDiff
from sgpipe.sgdiff.names import EMA, FIRST_STAGE, PREDICTOR
from sgpipe.sgdiff.networks import FirstStageConfig, NoisePredictor, PredictorConfig, first_stage
from sgpipe.sgdiff.published import check_published, expected_shapes, parts_of, read_published
from tests.sgdiff.small import VOCABULARY, lightning, official_state, small

GRAPH = SceneGraph(("dog", "cat", "mat"), ((0, "left of", 1), (1, "on", 2)))
Published = dict[str, dict[str, Any]]


def published(reference: Path, name: str) -> Published:
    return json.loads((reference / f"reference/sgdiff_{name}_ldm_state_dict.json").read_text())["tensors"]


@pytest.mark.parametrize(("name", "objects", "predicates"), [("vg", 179, 46), ("coco", 184, 7)])
def test_every_published_tensor_has_its_place(reference_dir: Path, name: str, objects: int, predicates: int) -> None:
    tensors = published(reference_dir, name)
    with torch.device("meta"):
        parts = NoisePredictor(PredictorConfig()), first_stage(FirstStageConfig()), Cgip(CgipConfig(objects, predicates))
    assert sum(weight.numel() for weight in parts[0].parameters()) == 395_771_140
    assert sum(weight.numel() for weight in parts[1].parameters()) == 67_717_295
    assert {each: list(shape) for each, shape in expected_shapes(*parts).items()} == {
        each: tensor["shape"] for each, tensor in tensors.items()
    }


@pytest.mark.parametrize("name", ["vg", "coco"])
def test_a_synthetic_checkpoint_of_full_size_is_taken(reference_dir: Path, name: str) -> None:
    """Sizes are read off its tensors, on the meta device; each single tensor that lacks or is of another shape is named."""
    tensors, path = published(reference_dir, name), Path("full.ckpt")
    state = {each: torch.empty(tensor["shape"], device="meta") for each, tensor in tensors.items()}
    shapes = expected_shapes(*parts_of(state, path))
    check_published(state, shapes, path)
    for each in list(state)[::97]:
        rest = {key: value for key, value in state.items() if key != each}
        with pytest.raises(ModelError, match=rf"^full\.ckpt: {each.replace('.', chr(92) + '.')} is missing; get a checkpoint"):
            check_published(rest, shapes, path)
        other = {**state, each: torch.empty(7, 7, 7, device="meta")}
        with pytest.raises(ModelError, match=r"is \(7, 7, 7\), expected"):
            check_published(other, shapes, path)
    with pytest.raises(ModelError, match=r"loss\.logvar is unexpected"):
        check_published({**state, "loss.logvar": torch.empty(1, device="meta")}, shapes, path)


@pytest.fixture(scope="module")
def model() -> SgDiff:
    return small()


def write(folder: Path, content: Any) -> tuple[Path, Path]:
    torch.save(content, folder / "sgdiff.ckpt")
    VOCABULARY.write(folder / "vocab.json")
    return folder / "sgdiff.ckpt", folder / "vocab.json"


def test_a_checkpoint_comes_back_as_its_average(tmp_path: Path, model: SgDiff) -> None:
    found = read_published(*write(tmp_path, lightning(official_state(model))))
    assert found.resolution == 256 and found.vocabulary == VOCABULARY
    for part in ("encoder", "predictor", "first_stage"):
        wanted = getattr(model, part).state_dict()
        own = getattr(found, part).state_dict()
        assert own.keys() == wanted.keys() and all(torch.equal(own[name], wanted[name]) for name in wanted), part


def test_the_folder_of_an_import_samples_the_same(tmp_path: Path, model: SgDiff) -> None:
    from diffusers import UNet2DConditionModel, VQModel

    found = read_published(*write(tmp_path, official_state(model)))
    found.resolution = 64
    found.save(tmp_path / "model")
    again = SgDiff.load(tmp_path / "model")
    images = [each.sample([GRAPH, GRAPH], [1, 2], steps=5) for each in (model, again)]
    assert np.array_equal(*images) and images[0].shape == (2, 64, 64, 3) and images[0].std() > 1
    unet = UNet2DConditionModel.from_pretrained(tmp_path / "model/unet")
    assert torch.equal(unet.conv_in.weight, model.predictor.unet.conv_in.weight)
    assert VQModel.from_pretrained(tmp_path / "model/first_stage").config.num_vq_embeddings == 64


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: s.pop(f"{EMA}diffusion_modelout2bias"), r"model_ema\.diffusion_modelout2bias is missing"),
        (lambda s: s.pop(f"{PREDICTOR}out.2.bias"), r"model\.diffusion_model\.out\.2\.bias is missing"),
        (lambda s: s.update({"module.betas": s["betas"]}), r"module\.betas is unexpected"),
        (lambda s: s.update({f"{FIRST_STAGE}loss.logvar": torch.zeros(())}), r"loss\.logvar is unexpected"),
        (lambda s: s.update({f"{PREDICTOR}out.2.bias": torch.zeros(5)}), r"out\.2\.bias is \(5,\), expected \(4,\)"),
        (
            lambda s: s[f"{EMA}diffusion_modelout2bias"].fill_(torch.nan),
            r"diffusion_modelout2bias holds values that are not finite",
        ),
        (lambda s: s["alphas_cumprod"].mul_(0.99), r"alphas_cumprod is of another noise schedule"),
        (
            lambda s: [s.pop(name) for name in list(s) if name.startswith(PREDICTOR)],
            r"no checkpoint of SGDiff's generator \('model",
        ),
    ],
)
def test_what_is_not_the_published_state_is_named(tmp_path: Path, model: SgDiff, change: Any, says: str) -> None:
    state = {name: tensor.clone() for name, tensor in official_state(model).items()}
    change(state)
    with pytest.raises(ModelError, match=says):
        read_published(*write(tmp_path, lightning(state)))


def test_a_vocabulary_of_another_size_is_refused(tmp_path: Path, model: SgDiff) -> None:
    path, vocabulary = write(tmp_path, official_state(model))
    vocabulary.write_text(json.dumps({"object_idx_to_name": ["__image__", "dog"], "pred_idx_to_name": ["__in_image__"]}))
    with pytest.raises(DataError, match=r"2 object names, .* has rows for 44"):
        read_published(path, vocabulary)


class ModelCheckpoint:
    """Lightning's callback, by which its checkpoints key a state."""


ModelCheckpoint.__module__ = "pytorch_lightning.callbacks.model_checkpoint"


def test_the_state_of_lightning_callbacks_is_passed_over(tmp_path: Path, model: SgDiff, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["pytorch_lightning", "pytorch_lightning.callbacks", ModelCheckpoint.__module__]
    for name in names:
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setattr(sys.modules[names[-1]], "ModelCheckpoint", ModelCheckpoint, raising=False)
    content = lightning(official_state(model), callbacks={ModelCheckpoint: {"best_model_score": torch.tensor(0.1)}})
    paths = write(tmp_path, content)
    for name in names:
        monkeypatch.delitem(sys.modules, name)
    assert read_published(*paths).vocabulary == VOCABULARY


class Harm:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("harm"),)


def test_nothing_in_a_checkpoint_is_run(tmp_path: Path, model: SgDiff, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = write(tmp_path, lightning(official_state(model), callbacks=Harm()))
    with pytest.raises(ModelError, match="refused: the file asks to run or build"):
        read_published(*paths)
    assert not Path("harm").exists()
