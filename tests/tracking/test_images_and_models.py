"""Images by step and logged models are read back from the store as they were given."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sgpipe.tracking.run import track
from sgpipe.tracking.store import open_store, tracking_uri
from tests.tracking import factor_model
from tests.tracking.repositories import runs

LOADER = factor_model.__name__


def picture(path: Path, value: int) -> Path:
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(path)
    return path


def stored_images(root: Path, run_id: str, into: Path) -> dict[tuple[str, int], int]:
    """Key and step of each whole image of a run, with the value of its first pixel."""
    client, _ = open_store(root, "trial")
    found = {}
    for each in client.list_artifacts(run_id, "images"):
        if each.path.endswith(".png"):
            key, _, step, *_ = Path(each.path).name.split("+")
            image = Image.open(client.download_artifacts(run_id, each.path, str(into)))
            assert (key, int(step)) not in found, "stored once"
            found[key, int(step)] = int(np.asarray(image)[0, 0, 0])
    return found


def test_images_of_both_arms_stand_by_step_on_the_stages_and_on_the_experiment(stored: Path, tmp_path: Path) -> None:
    for arm, value in (("graph", 10), ("text", 20)):
        with track(f"train_lora@{arm}", {}, root=stored) as recorded:
            for step in (0, 50):
                recorded.log_image(picture(tmp_path / "x.png", value + step), "samples", step)
    by_stage = {run.data.tags["dvc.stage"]: run for run in runs(stored, "stage")}
    for arm, value in (("graph", 10), ("text", 20)):
        images = stored_images(stored, by_stage[f"train_lora@{arm}"].info.run_id, tmp_path)
        assert images == {("samples", 0): value, ("samples", 50): value + 50}
    (parent,) = runs(stored, "experiment")
    assert stored_images(stored, parent.info.run_id, tmp_path) == {
        ("train_lora.graph~samples", 0): 10, ("train_lora.graph~samples", 50): 60,
        ("train_lora.text~samples", 0): 20, ("train_lora.text~samples", 50): 70,
    }  # fmt: skip
    assert parent.data.tags["mlflow.loggedImages"] == "True"


def test_a_continued_run_stores_an_image_once(stored: Path, tmp_path: Path) -> None:
    path = picture(tmp_path / "x.png", 7)
    with pytest.raises(RuntimeError), track("train", {}, root=stored, fingerprint="f") as recorded:
        recorded.log_image(path, "samples", 5)
        raise RuntimeError
    with track("train", {}, root=stored, fingerprint="f") as recorded:
        recorded.log_image(path, "samples", 5)
        recorded.log_image(path, "samples", 50)
    (run,) = runs(stored, "stage")
    assert stored_images(stored, run.info.run_id, tmp_path) == {("samples", 5): 7, ("samples", 50): 7}


def test_a_logged_model_is_loaded_by_its_id_and_named_by_its_run(stored: Path, tmp_path: Path) -> None:
    from mlflow import pyfunc, set_tracking_uri

    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter/factor.txt").write_text("3")
    with track("train", {}, root=stored) as recorded:
        recorded.log_model(tmp_path / "adapter", LOADER, "graph", 500, {"plus": 0}, {"kind": "graph_lora"})
    shutil.rmtree(tmp_path / "adapter")
    (run,) = runs(stored, "stage")
    client, experiment_id = open_store(stored, "trial")
    (model,) = client.search_logged_models([experiment_id])
    assert (model.name, model.source_run_id, str(model.status)) == ("graph", run.info.run_id, "READY")
    assert model.params == {"kind": "graph_lora"}
    (output,) = client.get_run(run.info.run_id).outputs.model_outputs
    assert (output.model_id, output.step) == (model.model_id, 500)
    set_tracking_uri(tracking_uri(stored))
    try:
        loaded = [pyfunc.load_model(f"models:/{model.model_id}", model_config=given) for given in (None, {"plus": 1})]
    finally:
        set_tracking_uri(None)
    assert [each.predict([2]) for each in loaded] == [[6], [7]]


def test_a_model_that_cannot_be_stored_is_said_and_stops_nothing(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with track("train", {}, root=stored) as recorded:
        recorded.log_model(stored / "absent", LOADER, "graph", 1, {}, {})
    assert "stage train is no longer recorded in MLflow (" in capsys.readouterr().err
