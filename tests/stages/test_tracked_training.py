"""What a training leaves in MLflow, told by the stage itself: images of each arm by step, and its adapter as a logged model."""

from pathlib import Path

import pytest
import yaml
from msgspec import to_builtins

import stages.resolve
import stages.train_lora
from sgpipe.tracking.store import PATIENCE, open_store
from tests.conftest import ROOT
from tests.tiny import DOUBLE, SIDE, SINGLE, TOKENS
from tests.tracking.repositories import runs
from tests.tracking.test_images_and_models import stored_images
from tests.tracking.test_recorder import wait_for_recorders
from tests.training.world import tiny_train, write_world

pytestmark = pytest.mark.slow
ARMS = {"graph": {"kind": "graph_lora"}, "text_only": {"kind": "text_lora"}}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: a tiny world with two arms, its parameters, and a store of its own."""
    for name in ("MLFLOW_TRACKING_URI", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV", *PATIENCE):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    world = write_world(tmp_path)
    train = to_builtins(tiny_train(keep_epochs=()))
    train["validation"] |= {"images": 2}
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    for later in ("evaluate", "ablation"):  # their arms and epochs would have to follow
        del params[later]
    params["backbone"] = {
        "model": world.backbone.model, "files": world.backbone.model, "double_blocks": DOUBLE, "single_blocks": SINGLE,
        "resolution": SIDE, "max_sequence_length": TOKENS,
    }  # fmt: skip
    params |= {"train": train, "arms": ARMS, "lora": {"blocks": "1..2", "rank": 4, "alpha": 4}}
    params["maps"]["groups"] = {"middle": "0..1"}
    params |= {"compute": {"device": "cpu", "threads": 1}, "tracking": {"experiment": "trial"}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    (tmp_path / ".dvc").mkdir()
    for name in ("sgpipe", "sgworld", "stages"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_images_of_both_arms_by_step_and_a_model_of_each_are_on_the_runs(root: Path, tmp_path: Path) -> None:
    stages.resolve.main()
    for arm in ARMS:
        stages.train_lora.main(arm)
    wait_for_recorders(root)
    by_stage = {run.data.tags["dvc.stage"]: run for run in runs(root, "stage")}
    assert set(by_stage) == {f"train_lora@{arm}" for arm in ARMS}
    (parent,) = runs(root, "experiment")
    into = tmp_path / "read"
    into.mkdir()
    beside = stored_images(root, parent.info.run_id, into)
    client, experiment_id = open_store(root, "trial")
    models = {model.name: model for model in client.search_logged_models([experiment_id])}
    assert set(models) == set(ARMS)
    for arm in ARMS:
        run = by_stage[f"train_lora@{arm}"]
        samples = {int(path.stem.split("-")[1]) for path in (root / "outputs/lora" / arm / "samples").glob("step-*.png")}
        assert len(samples) > 1 and set(stored_images(root, run.info.run_id, into)) == {("samples", step) for step in samples}
        assert {step for name, step in beside if name == f"train_lora.{arm}~samples"} == samples
        (output,) = client.get_run(run.info.run_id).outputs.model_outputs
        assert (output.model_id, output.step) == (models[arm].model_id, max(samples))
        assert (models[arm].source_run_id, models[arm].params["kind"]) == (run.info.run_id, ARMS[arm]["kind"])
