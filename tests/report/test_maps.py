"""`sgpipe maps`: the image is the model's own, the maps are those of its layers in thirds, numbers and picture say the same."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from typer.testing import CliRunner

from sgpipe.arms.generation import GraphGenerator, read_backbone
from sgpipe.attention_maps.options import MapOptions, concept_embeddings
from sgpipe.attention_maps.stream import concept_stream
from sgpipe.backbones.denoiser import Denoiser
from sgpipe.backbones.families import open_text_encoders
from sgpipe.backbones.images import encode
from sgpipe.backbones.loading import load_module
from sgpipe.backbones.rectified_flow import noise
from sgpipe.cli import app
from sgpipe.errors import DataError, ParamsError, SgpipeError
from sgpipe.report.maps import concept_maps, layer_thirds, of_model, read_square
from sgpipe.runs import progress, quiet
from tests.tiny import SIDE, write_pipeline

PROMPT, CONCEPTS = "a photo of dog left of cat", ["dog", "left of", "cat"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pipeline(tmp_path_factory.mktemp("maps") / "tiny")


def called(*more: str) -> str:
    ran = CliRunner().invoke(app, ["maps", "--prompt", PROMPT, "--concepts", "dog, left of,cat", *more], catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    return ran.stdout


def test_layers_in_thirds() -> None:
    assert {name: str(group) for name, group in layer_thirds(19, 38).items()} == {
        "early": "[0..6]", "middle": "[7..12]", "late": "[13..18]",
    }  # fmt: skip
    assert [group.plain() for group in layer_thirds(0, 3).values()] == [{"single_blocks": f"[{i}]"} for i in range(3)]
    assert list(layer_thirds(2, 0)) == ["early", "middle"]


def test_a_sampled_image_is_the_bases_and_its_maps_are_shares(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *args, **how: (kept.append(figure), save(figure, *args, **how)))
    out = tmp_path / "maps.png"
    said = json.loads(called("--model", str(model), "--size", str(SIDE), "--seed", "3", "--out", str(out), "--json"))
    arrays = np.load(out.with_suffix(".npz"))
    own = GraphGenerator.load(model, None).sample([PROMPT], [None], [3], size=SIDE)[0]
    assert np.array_equal(arrays["image"], own)
    assert arrays["concepts"].tolist() == CONCEPTS == said["concepts"] and str(arrays["prompt"]) == PROMPT
    for group in ("early", "middle", "late"):
        np.testing.assert_allclose(arrays[f"saliency_{group}"].sum(axis=0), 1, atol=1e-6)
        assert said["maps"][f"cross_{group}"] == list(arrays[f"cross_{group}"].shape) == [3, 8, 8]
    (figure,) = kept
    cells = np.array(figure.axes, object).reshape(3, 7)
    assert [row[0].get_ylabel() for row in cells] == CONCEPTS
    assert [cell.get_title().replace("\n", " ") for cell in cells[0, [1, 6]]] == ["saliency early", "cross-attention late"]
    assert np.array_equal(cells[2, 6].images[1].get_array(), arrays["cross_late"][2])
    assert Image.open(out).size == (int(1.7 * 7 * 110), int((1.75 * 3 + 0.9) * 110))


def test_maps_of_a_real_image_are_those_of_one_forward(model: Path, tmp_path: Path) -> None:
    """z_t by hand; the image's middle square, its left and right cut off."""
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE + 10, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "real.png")
    out = tmp_path / "real-maps.png"
    called("--model", str(model), "--size", str(SIDE), "--image", str(tmp_path / "real.png"), "--time", "0.7", "--out", str(out))
    arrays = np.load(out.with_suffix(".npz"))
    assert np.array_equal(arrays["image"], pixels[:, 5:-5])
    backbone, cpu = read_backbone(model), torch.device("cpu")
    denoiser, encoders, vae = Denoiser.load(backbone, cpu), open_text_encoders(backbone, cpu), load_module(backbone, "vae")
    states = [concept_embeddings(each[None], torch.ones(1, len(each)).bool())[0] for each in encoders.concepts(CONCEPTS)]
    mean, _ = encode(denoiser.family, vae, [arrays["image"]])
    clean = (mean - vae.config.shift_factor) * vae.config.scaling_factor
    z_t = 0.3 * clean + 0.7 * noise([0], tuple(clean.shape[1:]))
    with torch.no_grad(), concept_stream(
        denoiser.transformer, torch.stack(states)[None], (8, 8), MapOptions({"late": "2"}, "concepts")
    ) as stream:  # fmt: skip
        denoiser.velocity(z_t, torch.tensor([0.7]), encoders.prompts([PROMPT]))
    for kind, wanted in zip(("saliency", "cross"), stream.maps()["late"], strict=True):
        np.testing.assert_allclose(arrays[f"{kind}_late"], wanted[0].numpy(), atol=1e-5)


@pytest.mark.parametrize(
    "more, error",
    [
        (["--concepts", "dog,,cat"], r"--concepts: got 'dog,,cat'; write different names"),
        (["--concepts", "dog,dog"], r"--concepts: got 'dog,dog'"),
        (["--out", "x.jpg"], r"--out: got x.jpg; a PNG is written"),
        (["--model", "m"], r"--size is needed with --model"),
    ],
)
def test_what_has_no_meaning_is_refused(more: list[str], error: str) -> None:
    with pytest.raises(ParamsError, match=error):
        called(*more)


@pytest.mark.parametrize("more, error", [
    (["--image", "none.jpg"], r"--image none\.jpg: cannot be read"),
    (["--size", "63"], r"--size: got 63; .* multiples of 4 .*60 or 64"),
])  # fmt: skip
def test_what_cannot_be_seen_is_refused_before_anything_is_loaded(
    model: Path, monkeypatch: pytest.MonkeyPatch, more: list[str], error: str
) -> None:
    def loaded(*_: object) -> None:
        raise AssertionError("a part of the pipeline is loaded")

    for name in ("open_tokenizers", "open_text_encoders", "load_module"):
        monkeypatch.setattr(f"sgpipe.report.maps.{name}", loaded)
    with pytest.raises(SgpipeError, match=error):
        called("--model", str(model), "--size", str(SIDE), *more)


@pytest.mark.parametrize("real", [True, False])
def test_both_ways_have_a_bar_that_reaches_its_end(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], real: bool
) -> None:
    monkeypatch.setattr(progress, "_options", lambda what, unit: {"desc": what, "unit": unit, "mininterval": 0, "miniters": 1})
    Image.fromarray(np.zeros((SIDE, SIDE, 3), np.uint8)).save(tmp_path / "real.png")
    backbone, maps = of_model(read_backbone(model), SIDE)
    concept_maps(backbone, maps, PROMPT, CONCEPTS, tmp_path / "real.png" if real else None, torch.device("cpu"), steps=3)
    said = capsys.readouterr().err
    assert "encoding and one forward: 100%" in said and "2/2" in said if real else "sampling: 100%" in said and "3/3" in said


def test_what_is_soon_loaded_shows_no_bar_of_a_library(model: Path, tmp_path: Path) -> None:
    """In a process of its own, as transformers keeps its switch for a whole process; other commands by the same switch."""
    asked = ["--prompt", PROMPT, "--concepts", "dog,cat", "--model", str(model), "--size", str(SIDE)]
    command = [sys.executable, "-m", "sgpipe.cli", "maps", *asked, "--out", str(tmp_path / "maps.png")]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ran.stderr == "" and ran.stdout.split() == [str(tmp_path / "maps.png"), str(tmp_path / "maps.npz")]


def test_what_takes_longer_shows_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers.utils import logging

    monkeypatch.setattr(quiet, "SHOWN_AFTER", 0.01)
    before = logging.set_tqdm_hook(None)
    try:
        quiet.late_bars()
        assert list(logging.tqdm(range(2), desc="soon")) == [0, 1] and "soon" not in capsys.readouterr().err
        for _ in logging.tqdm(range(4), desc="Loading weights", mininterval=0, miniters=1):
            time.sleep(0.02)
        assert "Loading weights" in capsys.readouterr().err
    finally:
        logging.set_tqdm_hook(before)


@pytest.mark.parametrize("command", ["maps", "generate", "study", "localise", "playground"])
def test_every_command_that_loads_texts_is_as_quiet(
    model: Path, tmp_path: Path, repo_root: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    class AskedFor(Exception):
        pass

    def asked() -> None:
        raise AskedFor

    monkeypatch.setattr(quiet, "late_bars", asked)
    (tmp_path / "models").symlink_to(model.parent)
    monkeypatch.chdir(tmp_path)
    sized = ["--model", str(model), "--size", str(SIDE)]
    given = {
        "maps": [*sized, "--prompt", PROMPT, "--concepts", "dog"], "generate": [*sized, "--prompt", PROMPT], "study": sized,
        "localise": [*sized, "--graph", "dog, left of, cat"], "playground": ["--params", str(repo_root / "params.yaml")],
    }  # fmt: skip
    with pytest.raises(AskedFor):
        CliRunner().invoke(app, [command, *given[command]], catch_exceptions=False)


def test_a_file_that_is_no_image_is_said(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_text("no image")
    with pytest.raises(DataError, match=r"--image .*x\.png: cannot be read"):
        read_square(tmp_path / "x.png", 8)
