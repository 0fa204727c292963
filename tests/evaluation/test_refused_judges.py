"""Judges that are refused: weights missing, damaged or of another model, a machine without memory, impossible parameters."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sgpipe.errors import ModelError, ParamsError
from sgpipe.evaluation.config import Judge, JudgeParams
from sgpipe.evaluation.judge_factory import open_judge
from sgpipe.params.load import decode

CPU = torch.device("cpu")


def cut_off(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def test_a_judge_without_weights_is_refused(tmp_path: Path, clip: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "owlv2"}))
    for named in (
        Judge(kind="zero_shot_detector", model=str(tmp_path)),
        Judge(kind="open_clip", model="no-such-architecture", pretrained=str(clip / "open_clip_model.safetensors")),
    ):
        with pytest.raises(ModelError, match=r"judge\.judges\.a: .* cannot be loaded"):
            open_judge("a", named, CPU)


@pytest.mark.parametrize(
    ("file", "damage", "says"),
    [
        ("open_clip_model.safetensors", lambda path: cut_off(path, 0), "empty, cut off"),
        ("open_clip_model.safetensors", lambda path: cut_off(path, 40), "empty, cut off"),
        ("open_clip_model.safetensors", lambda path: cut_off(path, path.stat().st_size // 2), "empty, cut off"),
        ("open_clip_model.safetensors", lambda path: path.write_text("<html>" * 50), "empty, cut off"),
        ("open_clip_config.json", lambda path: cut_off(path, 20), "Could not load valid config"),
        ("open_clip_config.json", lambda path: path.write_text('{"model_cfg": 3}'), "cannot be loaded"),
    ],
)
def test_a_damaged_open_clip_folder_is_named_in_one_line(
    clip: Path, tmp_path: Path, file: str, damage: Callable[[Path], object], says: str
) -> None:
    folder = tmp_path / "clip"
    shutil.copytree(clip, folder)
    damage(folder / file)
    with pytest.raises(ModelError, match=says) as raised:
        open_judge("a", Judge(kind="open_clip", model=f"local-dir:{folder}"), CPU)
    assert str(folder) in str(raised.value) and "expected: open_clip's" in str(raised.value)
    assert "\n" not in str(raised.value)


class Foreign:
    """An object that a checkpoint of tensors does not hold."""


@pytest.fixture(scope="module")
def architecture(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name under which open_clip knows the architecture of `clip`."""
    import open_clip

    config = json.loads((clip / "open_clip_config.json").read_text())["model_cfg"]
    path = tmp_path_factory.mktemp("configs") / "tiny-for-damage.json"
    path.write_text(json.dumps({**config, "text_cfg": {k: v for k, v in config["text_cfg"].items() if "hf_" not in k}}))
    open_clip.add_model_config(path)
    return path.stem


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path, state: path.write_bytes(b""), "empty, cut off"),
        (lambda path, state: path.write_bytes(b"\x80"), "empty, cut off"),
        (lambda path, state: (torch.save(state, path), cut_off(path, path.stat().st_size // 2)), "RuntimeError: Pytorch"),
        (
            lambda path, state: (torch.save(state, path, _use_new_zipfile_serialization=False), cut_off(path, 30)),
            "empty, cut off",
        ),
        (lambda path, state: path.write_text("<html>" * 50), "or is no checkpoint"),
        (lambda path, state: torch.save({"state_dict": state, "args": Foreign()}, path), "objects other than tensors"),
        (lambda path, state: torch.save([1, 2], path), "other than named tensors"),
        (lambda path, state: torch.save(dict.fromkeys(state, 1), path), "other than named tensors"),
        (lambda path, state: torch.save({}, path), "other than named tensors"),
        (lambda path, state: torch.save({f"{k}x": v for k, v in state.items()}, path), "Missing key"),
        (lambda path, state: torch.save(dict(list(state.items())[1:]), path), "Missing key"),
        (lambda path, state: path.mkdir(), "not a known tag or valid file path"),
        (lambda path, state: None, "no such file"),
    ],
)  # fmt: skip
def test_a_damaged_checkpoint_is_named_in_one_line(
    clip: Path, architecture: str, tmp_path: Path, make: Callable[[Path, dict[str, Any]], object], says: str
) -> None:
    """Whatever torch or open_clip raise of it; torch's advice to switch its protection off is not passed on."""
    path = tmp_path / "checkpoint.pt"
    make(path, load_file(clip / "open_clip_model.safetensors"))
    with pytest.raises(ModelError, match=says) as raised:
        open_judge("a", Judge(kind="open_clip", model=architecture, pretrained=str(path)), CPU)
    message = str(raised.value)
    assert message.startswith(f"judge.judges.a: {architecture} with {path} cannot be loaded (")
    assert "\n" not in message and "weights_only" not in message


@pytest.mark.parametrize(
    ("file", "damage", "says"),
    [
        ("model.safetensors", lambda path: cut_off(path, path.stat().st_size // 2), "empty, cut off"),
        ("config.json", lambda path: path.write_text(path.read_text().replace('heads": 2', 'heads": 0')), "ZeroDivision"),
        ("config.json", lambda path: path.write_text('{"model_type": "bert"}'), "Unrecognized configuration"),
        ("tokenizer_config.json", lambda path: path.write_text("[]"), "entries of a configuration"),
        ("processor_config.json", lambda path: path.write_bytes(b"\xff\xfe"), "UnicodeDecodeError"),
    ],
)  # fmt: skip
def test_a_damaged_detector_is_named_in_one_line(
    owl: Path, tmp_path: Path, file: str, damage: Callable[[Path], object], says: str
) -> None:
    folder = tmp_path / "owl"
    shutil.copytree(owl, folder)
    damage(folder / file)
    with pytest.raises(ModelError, match=says) as raised:
        open_judge("a", Judge(kind="zero_shot_detector", model=str(folder)), CPU)
    assert str(folder) in str(raised.value) and "\n" not in str(raised.value)


def test_a_machine_without_memory_is_no_fault_of_the_checkpoint(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("none left")

    monkeypatch.setattr("sgpipe.evaluation.judge_factory.load_open_clip", full)
    with pytest.raises(torch.OutOfMemoryError):
        open_judge("a", Judge(kind="open_clip", model=f"local-dir:{clip}"), CPU)


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        ({"kind": "sgworld", "model": "x"}, "takes no model"),
        ({"kind": "open_clip"}, "takes a model"),
        ({"kind": "open_clip", "model": "ViT-B-32"}, "needs a tag or a checkpoint path"),
        ({"kind": "zero_shot_detector", "model": "x", "pretrained": "y"}, "only kind open_clip takes one"),
    ],
)
def test_params_refuse(raw: dict[str, Any], says: str) -> None:
    with pytest.raises(ParamsError, match=says):
        decode("judge", {"judges": {"a": raw}, "headline": "a"}, JudgeParams, "params.yaml")


def test_params_refuse_names() -> None:
    exact = {"kind": "sgworld"}
    with pytest.raises(ParamsError, match="headline: got 'b'; valid: a"):
        decode("judge", {"judges": {"a": exact}, "headline": "b"}, JudgeParams, "params.yaml")
    with pytest.raises(ParamsError, match=r"got the name 'a\.b'"):
        decode("judge", {"judges": {"a.b": exact}, "headline": "a.b"}, JudgeParams, "params.yaml")
