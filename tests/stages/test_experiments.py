"""Experiments as people run them with DVC, on a tiny drawn world in a folder with a space in its name: what is made again."""

import json
import shutil
import sys
import time
from pathlib import Path

import pytest
import yaml
from msgspec import to_builtins

from sgpipe.tracking.store import tracking_uri
from tests.evaluation.drawn import tiny_params, write_models, write_triples
from tests.lora.conftest import tiny_lora
from tests.stages.test_pipeline import ROOT, clone, dvc, run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

GIVEN = ("canonicalize", "curate", "negatives", "graph_encoder", "saliency", "saliency_noised", "saliency_sheets",
         "probe", "probe_table")  # fmt: skip
"""Stages left out here: their results are put under DVC as data."""
GIVEN_FILES = (
    "outputs/curated",
    "outputs/negatives",
    "outputs/graph_encoder",
    "outputs/probes",
    "plots/saliency",
)
TRAIN = (("horse", "cow"), ("car", "tree"), ("hat", "book"), ("bus", "sheep"))
FOLLOW = (
    *("resolve", "train_lora@graph", "draw_images@graph", "judge", "evaluate"),
    *("draw_epochs@graph-1", "draw_epochs@graph-2", "judge_epochs", "ablation", "report"),
)
"""What another block group makes again."""


def git(root: Path, *arguments: str) -> str:
    return run(root, "git", "-c", "user.name=a", "-c", "user.email=a@example.org", *arguments)


def ran(output: str) -> set[str]:
    """The stages that DVC says it ran."""
    parts = output.split("Running stage '")[1:]
    return {part.split("'")[0] for part in parts}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository whose pipeline from the caches on has run and is committed."""
    root = clone(tmp_path_factory.mktemp("experiments") / "a clone", Path("data"))
    write_models(root)
    write_triples(root, TRAIN)
    empty = root / "outputs/curated/map_triples.parquet"
    shutil.copy(root / "outputs/curated/triples.parquet", empty)
    for name in ("graph_encoder", "probes"):
        (root / "outputs" / name).mkdir()
        (root / "outputs" / name / "README").write_text("read by no arm here\n")
    (root / "plots/saliency").mkdir(parents=True)
    shutil.copy(ROOT / "docs/images/saliency.png", root / "plots/saliency/left_of.png")
    (root / "metrics").mkdir()
    shutil.copy(ROOT / "metrics/probes.json", root / "metrics/probes.json")
    pipeline = yaml.safe_load((root / "dvc.yaml").read_text())
    for name in GIVEN:
        del pipeline["stages"][name]
    (root / "dvc.yaml").write_text(yaml.safe_dump(pipeline, sort_keys=False))
    params = tiny_params()
    lora = to_builtins(tiny_lora(epochs=2, keep_epochs=(1, 2), arms=("graph",)), enc_hook=str)
    params["lora"] |= lora
    params["evaluate"] |= {
        "adapters": {"graph": "graphs"},
        "draw": {"neutral": ["positive", "negative"]},
        "steps": 1,
    }
    params["maps"]["groups"] = {"middle": "0..2"}
    params["compute"] = {"device": "cpu", "threads": 1}
    params["tracking"] = {"enabled": True, "experiment": "sgpipe"}
    (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    (root / ".gitignore").write_text("__pycache__/\n/mlruns\n")
    dvc(root, "add", "-q", "data", "models", *GIVEN_FILES)
    dvc(root, "repro")
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "the pipeline has run")
    assert "up to date" in dvc(root, "status")
    return root


def test_another_spelling_trains_nothing(root: Path) -> None:
    done = dvc(root, "exp", "run", "-n", "spelling", "-S", "lora.blocks=[1..2]")
    assert ran(done) == {"resolve"}
    assert yaml.safe_load((root / "params.yaml").read_text())["lora"]["blocks"] != "1..2"
    git(root, "checkout", "-q", ".")


def test_another_block_group_runs_training_and_what_follows(root: Path) -> None:
    before = json.loads((root / "metrics/lora.json").read_text())
    done = dvc(root, "exp", "run", "-n", "early", "-S", "lora.blocks=[0..1]")
    assert ran(done) == set(FOLLOW)
    after = json.loads((root / "metrics/lora.json").read_text())
    assert after["arms"]["graph"]["val_loss_base"] == before["arms"]["graph"]["val_loss_base"]
    assert after["arms"]["graph"]["val_loss_graph"] != before["arms"]["graph"]["val_loss_graph"]
    changed = json.loads(dvc(root, "metrics", "diff", "--json", "metrics/lora.json"))
    assert any(name.endswith("val_loss_graph") for name in changed["metrics/lora.json"])
    git(root, "checkout", "-q", ".")
    dvc(root, "checkout", "-q")
    pooled = run(root, sys.executable, "-m", "sgpipe.cli", "report", "sweep", "early", "--out", "sweep.json")
    found = json.loads((root / "sweep.json").read_text())["arms"]["graph"]
    assert "early" in pooled and found["val_loss_graph"] == after["arms"]["graph"]["val_loss_graph"]
    (root / "sweep.json").unlink()
    assert "up to date" in dvc(root, "status")


def test_three_queued_experiments_stand_side_by_side(root: Path) -> None:
    groups = {"one": "[0]", "two": "[1]", "three": "[0,2]"}
    for name, blocks in groups.items():
        dvc(root, "exp", "run", "--queue", "-n", name, "-S", f"lora.blocks={blocks}", "train_lora")
    dvc(root, "queue", "start", "-j", "2")
    until = time.monotonic() + 900
    while time.monotonic() < until:
        states = [line.split() for line in dvc(root, "queue", "status").splitlines()]
        ended = {
            words[1]: words[-1] for words in states if len(words) > 2 and words[-1] in ("Success", "Failed")
        }
        if set(groups) <= set(ended):
            break
        time.sleep(1)
    assert ended == dict.fromkeys(groups, "Success"), dvc(root, "queue", "logs", "one")
    shown = json.loads(dvc(root, "exp", "show", "--json", "--all-commits"))
    losses = {}
    for commit in shown:
        for experiment in commit["experiments"] or []:
            revision = experiment["revs"][0]
            if revision["name"] in groups:
                found = revision["data"]["metrics"]["metrics/lora/graph.json"]["data"]
                losses[revision["name"]] = found["val_loss_graph"]
    assert set(losses) == set(groups) and len(set(losses.values())) == 3

    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri(root))
    experiment = client.get_experiment_by_name("sgpipe")
    assert experiment is not None
    recorded = client.search_runs([experiment.experiment_id], max_results=200)
    assert set(groups) <= {each.data.tags.get("dvc.exp_name") for each in recorded}
    assert git(root, "status", "--porcelain") == ""


def test_a_compute_knob_makes_nothing_again(root: Path) -> None:
    done = dvc(root, "exp", "run", "-n", "threads", "-S", "compute.threads=2")
    assert ran(done) == set()
    git(root, "checkout", "-q", ".")
