"""The stages from drawing to the page, with a generator that requests by rule: killed or not, the bytes are the same."""

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

import stages.ablation
import stages.evaluate
import stages.judge
import stages.report
import stages.sample_images
from sgpipe.cli import app
from sgpipe.datasets.tables import NEGATIVES, TRIPLES, read_table, write_table
from sgpipe.errors import DataError, ModelError, ParamsError
from sgpipe.evaluation.calibration import questions
from sgpipe.evaluation.samples import CALIBRATION
from sgpipe.evaluation.sampling_plan import read_evaluation_triples
from sgpipe.report.panels import sample_sheet
from tests.evaluation.drawn import DrawnGenerator, call, write_repository, write_training

pytestmark = pytest.mark.slow


def opened(_: Any, adapter: Path | None, *__: Any) -> DrawnGenerator:
    """The graph arm follows graphs, epoch 1 half as well as epoch 2."""
    return DrawnGenerator(0.6 if adapter is not None and adapter.name == "epoch-1" else 0.9)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A repository in which every arm was trained."""
    root = tmp_path_factory.mktemp("made") / "repository"
    root.mkdir()
    write_repository(root)
    write_training(root)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(stages.sample_images, "open_generator", opened)
        yield root


@pytest.fixture(scope="module")
def sampled(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy with the images of every arm."""
    root = copied(made, tmp_path_factory.mktemp("sampled"))
    with contextlib.chdir(root):
        for arm in ("base", "text_only", "graph"):
            call(stages.sample_images.main, arm=arm)
    return root


@pytest.fixture(scope="module")
def judged(sampled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy with verdicts, too."""
    root = copied(sampled, tmp_path_factory.mktemp("judged"))
    with contextlib.chdir(root):
        call(stages.judge.main)
    return root


@pytest.fixture
def root(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: a copy of `made`, or of the fixture that the test names."""
    root = copied(request.getfixturevalue(getattr(request, "param", "made")), tmp_path)
    monkeypatch.chdir(root)
    return root


WITH_IMAGES = pytest.mark.parametrize("root", ["sampled"], indirect=True)
WITH_VERDICTS = pytest.mark.parametrize("root", ["judged"], indirect=True)


def copied(source: Path, folder: Path) -> Path:
    return shutil.copytree(source, folder / "repository", symlinks=True)


def set_params(root: Path, **sections: dict[str, Any]) -> None:
    params = yaml.safe_load((root / "params.yaml").read_text())
    for name, values in sections.items():
        params[name] |= values
    (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


@WITH_VERDICTS
def test_killed_while_drawing_or_judging_the_bytes_are_the_same(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = {path: path.read_bytes() for path in sorted(Path("outputs/images").rglob("*.parquet"))}
    judged = {path: path.read_bytes() for path in sorted(Path("outputs/judged").iterdir())}
    assert len(images) == 3 and len(judged) == 5
    assert not list(Path(".dvc/stage-state").glob("*/*"))
    shutil.rmtree("outputs/images/graph")
    with monkeypatch.context() as patched:
        patched.setattr(stages.sample_images, "open_generator", lambda *_: DrawnGenerator(fails_after=5))
        with pytest.raises(KeyboardInterrupt):
            call(stages.sample_images.main, arm="graph")
    assert not Path("outputs/images/graph").exists()
    assert len(list(Path(".dvc/stage-state").glob("sample_images-graph-*/images-*"))) == 2
    call(stages.sample_images.main, arm="graph")
    assert {path: path.read_bytes() for path in images} == images
    shutil.rmtree("outputs/judged")
    with monkeypatch.context() as patched:
        patched.setattr(stages.judge, "open_judge", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            call(stages.judge.main)
    call(stages.judge.main)
    assert {path: path.read_bytes() for path in judged} == judged


@WITH_VERDICTS
def test_figures_and_page_of_arms_drawn_by_rule(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call(stages.evaluate.main)
    assert "judges.exact.ground_truth_accuracy" not in capsys.readouterr().err
    found = json.loads(Path("metrics/evaluation.json").read_text())
    exact = found["judges"]["exact"]
    assert exact["ground_truth_accuracy"] >= 0.98 and exact["refused"] == [] and exact["order_bias"] == 0.0
    assert found["judges"]["clip"]["ground_truth_accuracy"] < 0.9, "random weights"
    graph = found["arms"]["graph"]["neutral"]
    assert graph["positive"]["objects_present"] == 1.0
    assert graph["positive"]["direction_accuracy"] > 0.75 > 0.5 > graph["negative"]["direction_accuracy"]
    arms = json.loads(Path("metrics/lora.json").read_text())["arms"]
    assert arms["graph"]["swap_follow_rate"] == pytest.approx(1 - graph["negative"]["direction_accuracy"], abs=1e-5)
    assert arms["graph"]["val_loss_shuffled"] == 0.1 and arms["text_only"]["prompt"] == "relational"
    apart = found["diversity"]["graph"]["neutral"]["positive"]
    assert found["feature_judge"] == "clip" and apart["pairs"] > 0 and min(apart["pixels"], apart["features"]) > 0
    before = Path("metrics/evaluation.json").read_bytes()
    call(stages.evaluate.main)
    assert Path("metrics/evaluation.json").read_bytes() == before

    path = Path("outputs/judged/calibration.parquet")
    whole, asked = path.read_bytes(), read_table(path, CALIBRATION)
    write_table(asked.filter(pc.not_equal(asked["question"], "own")), path)
    call(stages.evaluate.main)
    said = capsys.readouterr().err
    assert "warning: evaluation: undefined, written as null: " in said and "judges.exact.ground_truth_accuracy" in said
    path.write_bytes(whole)
    call(stages.evaluate.main)

    call(stages.report.main)
    page = Path("outputs/report/index.html").read_text()
    assert "Not there: metrics/ablation.json" in page and "Not there: metrics/probes.json" in page
    assert "Diversity: do seeds of one graph give different images" in page and "1 − cosine of clip" in page
    assert page.count('class="panel"') == 3 + 2 + 1 and "<script" not in page
    assert "Localisation" not in page and "graph shows g⁺ in 2 of 2 seeds" in page and page.count('type="radio"') > 2

    for epoch in (1, 2):
        call(stages.sample_images.main, arm="graph", epoch=epoch)
    call(stages.judge.main, images=Path("outputs/images_by_epoch"), out=Path("outputs/judged_by_epoch"))
    call(stages.ablation.main)
    ablation = json.loads(Path("metrics/ablation.json").read_text())
    last = ablation["epochs"]["2"]
    assert last["direction_accuracy"] == graph["positive"]["direction_accuracy"], "the same triples, seeds and noise"
    assert last["direction_accuracy"] > ablation["epochs"]["1"]["direction_accuracy"]
    assert ablation["comparisons"]["2-1"]["difference"] > 0
    set_params(root, maps={"groups": {"early": "0", "late": "1..2"}})
    moved = {"method": "patching", "kind": "denoising", "rows": "text", "effect": 0.4, "effect_low": 0.3, "effect_high": 0.5}
    found = {"rows": [{"group": group, "block": None, **moved} for group in ("early", "late")]}
    Path("metrics/localisation.json").write_text(json.dumps(found))
    call(stages.report.main)
    page = Path("outputs/report/index.html").read_text()
    assert "different samples" in page and "Learning curve with 95 % intervals. 1 epochs: " in page
    assert "late blocks 1–2" in page and page.count("0.40 [0.30, 0.50]") == 2


@WITH_VERDICTS
def test_ground_truth_that_cannot_be_read_is_left_out_and_counted(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A broken val image costs its own questions; verdicts of sampled images stay, and the evaluation counts it."""
    whole = {name: pq.read_table(f"outputs/judged/{name}.parquet") for name in ("verdicts", "calibration", "rejects")}
    assert whole["rejects"].num_rows == 0
    Path("data/VG_100K/3.png").write_bytes(b"\xff\xd8\xff\xe0")
    call(stages.judge.main)
    assert "ground truth of 1 of 12 val triples cannot be read (image unreadable: 1)" in capsys.readouterr().err
    found = {name: pq.read_table(f"outputs/judged/{name}.parquet") for name in whole}
    assert found["verdicts"].equals(whole["verdicts"])
    (reject,) = found["rejects"].to_pylist()
    assert (reject["triple_id"], reject["image_id"], reject["reason"]) == ("3-1", 3, "image unreadable")
    cases = read_evaluation_triples(
        read_table(Path("outputs/curated/triples.parquet"), TRIPLES),
        read_table(Path("outputs/negatives/negatives.parquet"), NEGATIVES),
    )
    kept = [cases[question.image].image_id != 3 for question in questions(cases)] * 2
    expected = whole["calibration"].filter(pa.array(kept))
    scores = ["positive", "negative"]  # CLIP's last digits depend on which images share a batch
    assert found["calibration"].drop_columns(scores).equals(expected.drop_columns(scores)) and not all(kept)
    for name in scores:
        np.testing.assert_allclose(found["calibration"][name].to_numpy(), expected[name].to_numpy(), rtol=1e-4)
    call(stages.evaluate.main)
    counted = json.loads(Path("metrics/evaluation.json").read_text())
    assert counted["ground_truth"] == {"triples": 12, "read": 11, "rejected_by_reason": {"image unreadable": 1}}
    assert counted["judges"]["exact"]["images"] == 11

    of_clip = found["calibration"].filter(pc.equal(found["calibration"]["judge"], "clip"))
    pq.write_table(of_clip, "outputs/judged/calibration.parquet")
    with pytest.raises(DataError, match="judge exact has not been calibrated on ground truth"):
        call(stages.evaluate.main)
    for path in Path("data/VG_100K").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match="ground truth of none of 12 val triples can be read"):
        call(stages.judge.main)


@WITH_IMAGES
def test_the_readmes_sheet_shows_every_picture_asked_for(root: Path) -> None:
    done = CliRunner().invoke(app, ["report", "sheet", "--count", "3", "--out", "sheet.png"], catch_exceptions=False)
    assert done.exit_code == 0
    with Image.open("sheet.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.shape[0] == 390 and (pixels != 255).any(axis=2).mean() > 0.3
    sample_sheet(Path("outputs/images"), Path("outputs/curated/triples.parquet"), 0, 3, Path("again.png"))
    assert Path("again.png").read_bytes() == Path("sheet.png").read_bytes()
    shutil.rmtree("outputs/images/graph")
    with pytest.raises(DataError, match="run `dvc repro` for the arm"):
        sample_sheet(Path("outputs/images"), Path("outputs/curated/triples.parquet"), 0, 3, Path("none.png"))


@WITH_VERDICTS
def test_another_judge_draws_nothing_again(root: Path) -> None:
    images = {path: path.stat().st_mtime_ns for path in Path("outputs/images").rglob("*.parquet")}
    set_params(root, judge={"judges": {"clip": {"kind": "open_clip", "model": "local-dir:models/clip"}}, "headline": "clip"})
    with pytest.raises(DataError, match="no arm's images"):
        call(stages.judge.main, images=Path("outputs/nowhere"))
    call(stages.judge.main)
    for name in ("verdicts", "features"):
        assert set(pq.read_table(f"outputs/judged/{name}.parquet")["judge"].to_pylist()) == {"clip"}
    assert images == {path: path.stat().st_mtime_ns for path in Path("outputs/images").rglob("*.parquet")}
    set_params(root, judge={"judges": {"other": {"kind": "sgworld"}}, "headline": "other"})
    with pytest.raises(DataError, match="judge other has not seen base"):
        call(stages.evaluate.main)


@WITH_IMAGES
def test_pictures_of_an_earlier_choice_are_refused(root: Path) -> None:
    path = Path("outputs/images/text_only/images.parquet")
    table = pq.read_table(path)
    ids = ["0-0", *table["triple_id"].to_pylist()[1:]]
    pq.write_table(table.set_column(table.schema.get_field_index("triple_id"), "triple_id", [ids]), path)
    with pytest.raises(DataError, match=r"not among the curated ones; .* remove outputs/images/text_only, or sample"):
        call(stages.judge.main)


def test_an_ablation_of_a_run_without_graphs_is_refused_by_name(root: Path) -> None:
    """Before a model is loaded to sample from its epochs, and before verdicts are read."""
    set_params(root, ablation={"runs": ["graph", "text_only"]})
    said = r"ablation\.runs: text_only is given no graphs \(evaluate\.adapters\.text_only: empty\).*valid here: graph"
    with pytest.raises(ParamsError, match=said):
        call(stages.ablation.main)
    with pytest.raises(ParamsError, match=said):
        call(stages.sample_images.main, arm="text_only", epoch=1)
    assert not Path("outputs/images_by_epoch").exists()
    with pytest.raises(ParamsError, match=r"base.*no training run.*valid here: graph"):
        call(stages.sample_images.main, arm="base", epoch=1)


def test_what_is_missing_is_said(root: Path) -> None:
    with pytest.raises(ParamsError, match="--arm: got 'garph'; valid: base, text_only, graph"):
        call(stages.sample_images.main, arm="garph")
    shutil.rmtree("outputs/lora/graph/adapter")
    with pytest.raises(ModelError, match=r"outputs/lora/graph/adapter: no adapter there.*train_lora"):
        call(stages.sample_images.main, arm="graph")
    with pytest.raises(ModelError, match=r"epoch-7: no adapter there.*keep_epochs"):
        call(stages.sample_images.main, arm="graph", epoch=7)
    call(stages.sample_images.main, arm="base")
    Path("models/clip/open_clip_model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"judge\.judges\.clip: local-dir:models/clip cannot be loaded"):
        call(stages.judge.main)
    shutil.rmtree("models/clip")
    with pytest.raises(ModelError, match="no such folder"):
        call(stages.judge.main)
    set_params(root, judge={"judges": {"exact": {"kind": "sgworld"}}, "headline": "exact"})
    with pytest.raises(ModelError, match=r"quality\.tower: local-dir:models/clip: no such folder"):
        call(stages.judge.main)
    set_params(root, quality={"tower": None})
    call(stages.judge.main)
    with pytest.raises(DataError, match="judge exact has not seen text_only"):
        call(stages.evaluate.main)
