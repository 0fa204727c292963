"""What sections must agree upon is refused before any stage begins, naming both knobs."""

import re
import shlex
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from sgpipe.arms.config import Arms
from sgpipe.cli import app
from sgpipe.errors import ParamsError
from sgpipe.params.load import read_section, to_builtins
from sgpipe.params.show import resolved
from sgpipe.runs.config import Compute


@pytest.fixture
def params(repo_root: Path, tmp_path: Path) -> Path:
    path = tmp_path / "params.yaml"
    path.write_text((repo_root / "params.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    return path


def change(path: Path, settings: dict[str, Any]) -> None:
    """Set dotted knobs; None of a mapping's key removes it."""
    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    for knob, value in settings.items():
        *parts, last = knob.split(".")
        place = found
        for part in parts:
            place = place[part]
        place[last] = value
    path.write_text(yaml.safe_dump(found, sort_keys=False), encoding="utf-8")


REFUSED: list[tuple[dict[str, Any], list[str]]] = [
    (
        {"evaluate.adapters": {"graph": "graphs", "projector_only": "graphs"}},
        ["evaluate.adapters: got projector_only", "which is not in arms", "graph, text_only"],
    ),
    (
        {"evaluate.adapters": {"graph": "graphs", "text_only": "graphs"}},
        ["evaluate.adapters.text_only: got graphs", "kind text_lora of arms.text_only", "empty"],
    ),
    ({"ablation.runs": ["graph", "graph-seed1"]}, ["ablation.runs: got graph-seed1", "not in arms"]),
    ({"study.arms": ["text_only"]}, ["study.arms: got text_only", "reads graphs", "valid: graph"]),
    ({"ablation.runs": ["text_only"]}, ["ablation.runs: got text_only", "reads no graph", "graph"]),
    (
        {"evaluate.adapters": {"graph": "empty"}},
        ["ablation.runs: got graph", "evaluate.adapters.graph", "empty"],
    ),
    (
        {"maps.variant": "official_sd3"},
        ["maps.variant: got official_sd3", "cache_prompts.joined_concepts is false", "set it to true, or maps.variant to ours"],
    ),
    ({"ablation.epochs": [5, 20]}, ["ablation.epochs: got 5", "train.keep_epochs", "10, 20"]),
    (
        {"curate.train": 4, "train.batch_size": 80, "train.keep_epochs": [10, 20]},
        ["train.keep_epochs: got 10", "before the first step", "takes 80 triples", "curate.train"],
    ),
    (
        {"curate.train": 28, "train.batch_size": 400, "train.keep_epochs": [15, 16, 20], "ablation.epochs": [15, 16]},
        ["train.keep_epochs: got 15 and 16", "step 1", "curate.train"],
    ),
    (
        {"train.conditions": {"neutral": 0.5, "dropped": 0.5}},
        ["train.conditions.dropped: got 0.5", "cache_prompts.conditions", "relational, neutral, wrong"],
    ),
    (
        {"cache_prompts.conditions": ["neutral", "wrong"], "saliency.condition": "neutral",
         "saliency_noised.conditions": ["neutral"], "probes.noise_aware.conditions": ["neutral"]},
        ["arms.text_only.kind: got text_lora", "relational", "cache_prompts.conditions"],
    ),
    ({"saliency.condition": "dropped"}, ["saliency.condition", "dropped", "cache_prompts.conditions"]),
    (
        {"saliency_noised.conditions": ["relational", "wrong", "neutral", "dropped"]},
        ["saliency_noised.conditions", "dropped", "cache_prompts.conditions"],
    ),
    (
        {"probes.noise_aware.conditions": ["dropped"]},
        ["probes.noise_aware.conditions", "dropped", "saliency_noised.conditions"],
    ),
    (
        {"train.losses.saliency": {"weight": 1, "group": "mid"}, "train.compile": False},
        ["train.losses.saliency.group: got mid", "maps.groups", "early, middle, late"],
    ),
    ({"evaluate.steps": 8}, ["train.times.steps: got 4", "evaluate.steps is 8", "train.times.density"]),
    (
        {"train.validation.steps": 8},
        ["train.times.steps: got 4", "train.validation.steps is 8", "train.times.density"],
    ),
    ({"train.guidance": 3.5}, ["evaluate.guidance: got null", "train.guidance is 3.5"]),
    ({"train.guidance": 3.5, "evaluate.guidance": 3.5}, ["saliency.guidance: got null", "train.guidance is 3.5"]),
    ({"saliency_noised.guidance": 3.5}, ["saliency_noised.guidance: got 3.5", "train.guidance is null", "evaluate and saliency"]),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "says"), REFUSED, ids=[next(iter(each)) for each, _ in REFUSED])
def test_sections_that_disagree_are_refused_by_both_names(params: Path, settings: dict[str, Any], says: list[str]) -> None:
    """By `sgpipe params show`, and by whatever section a stage reads first."""
    change(params, settings)
    for read in (lambda: resolved(params), lambda: read_section(params, "compute", Compute)):
        with pytest.raises(ParamsError) as caught:
            read()
        message = str(caught.value)
        assert message.startswith(f"{params}: ") and "\n" not in message
        for word in says:
            assert word in message, message


@pytest.mark.parametrize(
    "settings",
    [
        {"train.times.density": "uniform", "evaluate.steps": 8},
        {"arms.again": {"kind": "graph_lora", "seed": 1}, "ablation.runs": ["graph", "again"]},
        {"train.conditions": {"neutral": 0.5, "conflicting": 0.5}},
        {"study.arms": ["graph"]},
        {"train.validation": {"every": 10, "images": 0, "steps": 8}},
        {"train.losses.saliency": {"weight": 0, "group": "mid"}},
        {"evaluate.guidance": 4.5, "saliency.guidance": 4.5},
        dict.fromkeys(("train.guidance", "evaluate.guidance", "saliency.guidance", "saliency_noised.guidance"), 3.5),
    ],
)
def test_what_agrees_passes(params: Path, settings: dict[str, Any]) -> None:
    change(params, settings)
    resolved(params)


def test_a_mistake_in_any_section_is_found_by_the_first_stage(params: Path) -> None:
    change(params, {"ablation.epochs": [20, 10]})
    with pytest.raises(ParamsError, match=r"ablation\.epochs: got \[20, 10\]"):
        read_section(params, "compute", Compute)


def test_a_part_of_the_sections_is_checked_as_far_as_it_goes(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("compute: {threads: 2}\nablation: {epochs: [1, 2]}\n", encoding="utf-8")
    assert read_section(path, "compute", Compute).threads == 2


@pytest.mark.parametrize(
    "settings, name, shown",
    [
        (["arms.graph.seed=1"], "graph", {"kind": "graph_lora", "seed": 1}),
        (["+arms.graph.blocks=[0..6]"], "graph", {"blocks": "[0..6]", "seed": None}),
        (["+arms.late={kind: graph_lora, blocks: [13..18]}"], "late", {"blocks": "[13..18]"}),
        (["+arms.any-6={kind: graph_lora, blocks: random}"], "any-6", {"blocks": "random"}),
        (["+arms.alone={kind: graph_tokens}", "+evaluate.adapters.alone=graphs"], "alone", {"kind": "graph_tokens"}),
        (["~arms.text_only", "~evaluate.adapters.text_only"], "text_only", None),
    ],
)  # fmt: skip
def test_arms_are_set_as_experiments_set_knobs(params: Path, settings: list[str], name: str, shown: dict[str, Any] | None) -> None:
    """By DVC's own writer, as `dvc exp run -S` does."""
    from dvc.utils.hydra import apply_overrides

    apply_overrides(params, settings)
    arms = read_section(params, "arms", Arms)
    assert (name in arms) == (shown is not None) and "graph" in arms
    assert shown is None or shown.items() <= to_builtins(arms[name]).items()


def test_what_the_sweep_sets_passes(repo_root: Path, params: Path) -> None:
    """Every `dvc exp run` of `make sweep`, its `-S` options read off the Makefile and applied by DVC's own writer."""
    from dvc.utils.hydra import apply_overrides

    done = subprocess.run(["make", "-n", "sweep"], cwd=repo_root, capture_output=True, text=True, check=True)
    lines = [line for line in done.stdout.replace("\\\n", " ").splitlines() if " exp run " in line]
    assert len(lines) == 3
    preset = CliRunner().invoke(app, ["preset", "predecessor-miniature", "--settings", "--params", str(repo_root / "params.yaml")])
    for line in lines:
        words = shlex.split(re.sub(r"\$\([^)]*\)", preset.output.replace("\n", " "), line))
        settings = [after for word, after in pairwise(words) if word == "-S"]
        settings = [each.replace("train.seed=0,1,2", "train.seed=1") for each in settings]
        path = params.with_name("one.yaml")
        path.write_text(params.read_text(encoding="utf-8"), encoding="utf-8")
        apply_overrides(path, settings)
        read_section(path, "compute", Compute)
        assert resolved(path) != resolved(params)
