"""Experiments as a user runs them: what one knob makes run again, and several side by side in DVC and MLflow."""

import json
import re
import shutil
import sqlite3
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from msgspec import to_builtins

from sgworld.contrast import Tower, build_clip, save_local
from tests.stages.test_caches import set_params
from tests.stages.test_pipeline import clone, dvc, run
from tests.tiny import DOUBLE, SIDE, SINGLE, TOKENS
from tests.training.world import tiny_train, write_world

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
ROOT = Path(__file__).resolve().parents[2]
EARLY = (
    "canonicalize", "curate", "negatives", "cache_prompts", "cache_negative_prompts", "cache_latents", "graph_encoder",
    "saliency", "saliency_noised", "saliency_sheets", "probe@middle", "probe_table",
    "probe_words", "localise",
)  # fmt: skip
LATE = (
    "train_lora@graph", "sample_images@graph", "sample_epochs@graph-1", "sample_epochs@graph-2", "judge", "judge_epochs",
    "evaluate", "ablation", "report", "headline",
)  # fmt: skip
"""What runs where training has to, after `resolve`. `baseline` puts these stages' outputs there, like those of `EARLY`."""


def outputs_of(root: Path, stages: tuple[str, ...]) -> list[Path]:
    """Paths that stages of dvc.yaml write."""
    described = yaml.safe_load((root / "dvc.yaml").read_text())["stages"]
    found = []
    for stage in stages:
        name, _, item = stage.partition("@")
        stage_of = described[name].get("do", described[name])
        listed = [each for kind in ("outs", "metrics") for each in stage_of.get(kind, [])]
        paths = [next(iter(each)) if isinstance(each, dict) else each for each in listed]
        found += [root / re.sub(r"(-?\$\{(item\.\w+|key)\})+", item, path) for path in paths]
    return found


def remove_arm(root: Path, name: str) -> None:
    """As `-S '~arms.<name>'` does."""
    params = yaml.safe_load((root / "params.yaml").read_text())
    del params["arms"][name]
    (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


def stand_in(root: Path, stages: tuple[str, ...]) -> None:
    """Outputs that say nothing, of stages that DVC takes as having run."""
    for path in outputs_of(root, stages):
        if path.suffix:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}")
        else:
            path.mkdir(parents=True, exist_ok=True)
            (path / "stands-in").write_text(path.name)


def ran(output: str) -> set[str]:
    """Stages that DVC says it runs."""
    return set(re.findall(r"Running stage '([^']+)'", output))


def baseline(root: Path) -> Path:
    """A committed repository at tiny size in which DVC knows every stage as run; what training reads is real."""
    clone(root, Path("data"))
    write_world(root)
    tower = Tower(width=32, layers=1, patch=16, embed=16)
    save_local(build_clip(tower, 0), tower, root / "models/clip")
    train = to_builtins(tiny_train(keep_epochs=(1, 2)))
    train["losses"]["ranking"]["probe"] = "presets/unused/probe"  # DVC takes no null for a path
    clip = {"clip": {"kind": "open_clip", "model": "local-dir:models/clip"}}
    changes: dict[str, dict[str, Any]] = {
        "backbone": {
            "model": "models/tiny", "files": "models/tiny", "double_blocks": DOUBLE, "single_blocks": SINGLE,
            "resolution": SIDE, "max_sequence_length": TOKENS,
        },
        "graph_encoder": {"tower": "local-dir:models/clip", "files": "models/clip"},
        "maps": {"groups": {"middle": "0..1"}},
        "lora": {"blocks": "1..2", "rank": 4, "alpha": 4},
        "train": train,
        "evaluate": {"adapters": {"graph": "graphs"}, "conditions": {"neutral": ["positive", "negative"]}, "seeds": [0]},
        "judge": {"judges": clip, "headline": "clip", "files": "models/clip"},
        "quality": {"tower": None, "files": "models/clip"},
        "localise": {"adapter": "presets/unused/adapter"},
        "statistics": {"resamples": 100},
        "ablation": {"epochs": [1, 2], "runs": ["graph"]},
        "report": {"random": 1, "sheets": []},
        "compute": {"device": "cpu", "threads": 1},
    }  # fmt: skip
    set_params(root, **changes)
    remove_arm(root, "text_only")
    for name in ("objects", "relationships"):
        (root / f"data/{name}.json").write_text("[]")
    stand_in(root, EARLY)
    for name in ("canonical/images", "canonical/objects", "canonical/relations", "saliency/middle", "saliency_noised/middle"):
        (root / f"outputs/{name}.parquet").write_text(name)
    gains = {"word": ["object"] * 4, "block": [0, 0, 1, 1], "group": [0, 1, 0, 1], "gain": [0.5, 0.25, 0.25, 0.0]}
    pl.DataFrame(gains).write_parquet(root / "outputs/word_probes/gains.parquet")
    shutil.copy(ROOT / "metrics/probes.json", root / "metrics/probes.json")
    assert ran(dvc(root, "repro", "code")) == {"code"}
    dvc(root, "commit", "--quiet", "--force", *EARLY)
    assert ran(dvc(root, "repro", "resolve", "sample_base")) == {"resolve", "sample_base"}
    stand_in(root, LATE)
    for name in ("adapter", "epoch-1", "epoch-2"):
        (root / "outputs/lora/graph" / name).mkdir()
        (root / "outputs/lora/graph" / name / "stands-in").write_text(name)
    dvc(root, "commit", "--quiet", "--force", *LATE)
    run(root, "git", "add", "--force", "data", "models")
    run(root, "git", "add", "--all")
    run(root, "git", "config", "user.name", "a")
    run(root, "git", "config", "user.email", "a@example.org")
    run(root, "git", "commit", "--quiet", "-m", "baseline")
    return root


def reset(root: Path) -> None:
    """Back to the committed baseline."""
    run(root, "git", "checkout", "--quiet", ".")
    dvc(root, "checkout", "--quiet")
    assert "up to date" in dvc(root, "status")


def test_a_knob_runs_what_reads_it_and_a_queue_stands_side_by_side(tmp_path: Path) -> None:
    """One repository, since its baseline takes most of the time; its path has a blank."""
    root = baseline(tmp_path / "a repository")
    assert ran(dvc(root, "exp", "run", "-n", "same", "-S", "lora.blocks=[1,2..2]")) == {"resolve"}
    reset(root)
    assert ran(dvc(root, "exp", "run", "-n", "other", "-S", "lora.blocks=[0..1]")) == {"resolve", *LATE}
    adapter = json.loads((root / "outputs/lora/graph/adapter/adapter.json").read_text())
    assert adapter["settings"]["lora"]["blocks"] == "[0..1]"
    reset(root)
    an_arm_is_added(root)
    reset(root)
    queued(root)


def an_arm_is_added(root: Path) -> None:
    """Another arm trains and samples nothing of the others anew."""
    set_params(root, arms={"more": {"kind": "graph_tokens"}}, evaluate={"adapters": {"graph": "graphs", "more": "graphs"}})
    status = dvc(root, "status")
    changed = set(re.findall(r"^([\w@-]+):$", status, re.MULTILINE))
    assert {"resolve", "train_lora@more", "sample_images@more", "evaluate"} <= changed
    assert changed.isdisjoint({"train_lora@graph", "sample_base", "sample_images@graph", "sample_epochs@graph-1"}), status


def queued(root: Path) -> None:
    """Two block groups in the queue are two experiments of DVC, and of MLflow."""
    dvc(root, "exp", "run", "--queue", "-S", "lora.blocks=[0],[1]", "train_lora@graph")
    dvc(root, "queue", "start", "--jobs", "1")
    end = time.monotonic() + 900
    while re.search(r"Queued|Running", status := dvc(root, "queue", "status")) and time.monotonic() < end:
        time.sleep(3)
    assert status.count("Success") == 2, status
    shown = json.loads(dvc(root, "exp", "show", "--json"))
    head = next(each for each in shown if each["rev"] != "workspace")
    found = {}
    for experiment in head["experiments"]:
        data = experiment["revs"][0]["data"]
        blocks = data["params"]["params.yaml"]["data"]["lora"]["blocks"]
        if blocks in ([0], [1]):
            rev = experiment["revs"][0]["rev"]
            figures = json.loads(run(root, "git", "show", f"{rev}:metrics/lora/graph.json"))
            found[experiment["name"]] = (blocks[0], figures["val_loss_graph"])
    assert sorted(blocks for blocks, _ in found.values()) == [0, 1]
    assert len({loss for _, loss in found.values()}) == 2
    with sqlite3.connect(root / ".dvc/mlflow.db") as store:
        names = {row[0] for row in store.execute("SELECT value FROM tags WHERE key = 'dvc.exp_name'")}
    assert found.keys() <= names
