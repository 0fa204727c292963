"""Training seeds side by side: what one run shows, two equal runs show with more pictures, and the base counts once."""

from dataclasses import replace
from pathlib import Path

import pytest

from sgpipe.errors import DataError, ParamsError
from sgpipe.evaluation.arms import arm_figures
from sgpipe.evaluation.summary import evaluation_figures
from sgpipe.evaluation.sweep import Experiment, sweep_figures
from sgpipe.evaluation.verdicts import Verdicts
from sgpipe.report.cli import sweep_command
from sgpipe.report.sweep import sweep_table
from tests.evaluation.test_summary import SEEDS, world  # noqa: F401

LOSSES = {f"val_loss_{name}": 0.1 for name in ("graph", "empty", "shuffled", "swapped", "base")}


@pytest.fixture
def one(world: tuple) -> Experiment:  # noqa: F811
    verdicts, jury, files, _ = world
    found, _ = evaluation_figures(verdicts, jury, files)
    arms = arm_figures(found["arms"], {"graph": LOSSES})
    return Experiment("arms-1", "c" * 40, 0, "config", verdicts, jury, arms)


def test_equal_runs_pool_to_the_same_shares(one: Experiment) -> None:
    alone = sweep_figures([one])
    assert {name: arm["role_accuracy"] for name, arm in alone["arms"].items()} == pytest.approx(
        {name: arm["role_accuracy"] for name, arm in one.arms.items()}, abs=1e-6
    )
    again = replace(
        one, name="arms-2", seed=1, arms={**one.arms, "graph": {**one.arms["graph"], "val_loss_base": 0.3}}
    )
    both = sweep_figures([one, again])
    graph = both["arms"]["graph"]
    assert graph["role_accuracy"] == alone["arms"]["graph"]["role_accuracy"]
    assert graph["role_accuracy_pictures"] == 2 * alone["arms"]["graph"]["role_accuracy_pictures"]
    assert set(graph["role_accuracy_by_seed"]) == {"0", "1"} and graph["role_accuracy_deviation"] == 0.0
    assert graph["swapped_followed"] == alone["arms"]["graph"]["swapped_followed"]
    assert graph["val_loss_base"] == pytest.approx(0.2) and "val_loss_base" not in both["arms"]["base"]
    assert both["arms"]["base"] == alone["arms"]["base"], "trained nothing, counted once"
    assert both["experiments"]["arms-2"] == {"commit": "c" * 40, "seed": 1, "config": "config"}
    text = sweep_table(both).markdown()
    assert "| graph, neutral prompt |" in text and "arms-1 (ccccccc)" in text


def test_an_arm_is_pooled_over_the_experiments_that_trained_it(one: Experiment) -> None:
    part = {name: one.arms[name] for name in ("base", "graph")}
    found = sweep_figures([one, replace(one, name="part", seed=1, arms=part)])["arms"]
    seeds = {name: list(arm["role_accuracy_by_seed"]) for name, arm in found.items()}
    assert seeds == {name: ["0", "1"] if name == "graph" else ["0"] for name in one.arms}


def test_another_recipe_stands_beside_the_arms(one: Experiment) -> None:
    runs = [replace(one, name=f"old-{seed}", seed=seed) for seed in (5, 6)]
    found = sweep_figures([one], {"old": runs})
    alone = sweep_figures([one])
    assert {name: row for name, row in found["arms"].items() if name != "old"} == alone["arms"]
    assert found["arms"]["old"]["role_accuracy"] == alone["arms"]["graph"]["role_accuracy"]
    assert set(found["arms"]["old"]["role_accuracy_by_seed"]) == {"5", "6"}
    assert (found["training_seeds"], set(found["experiments"])) == (1, {"arms-1", "old-5", "old-6"})
    with pytest.raises(DataError, match="each may come once"):
        sweep_figures([one], {"old": [runs[0], runs[0]]})


def test_what_does_not_belong_together_is_refused(one: Experiment, world: tuple) -> None:  # noqa: F811
    with pytest.raises(DataError, match="each may come once"):
        sweep_figures([one, replace(one, name="again")])
    table, cases = world[3], one.verdicts.cases
    fewer = Verdicts(table.filter([row in SEEDS[:2] for row in table["seed"].to_pylist()]), cases, SEEDS[:2])
    with pytest.raises(DataError, match="other triples or seeds"):
        sweep_figures([one, replace(one, name="other", seed=1, verdicts=fewer)])


def test_an_arm_without_one_of_the_seeds_is_refused(one: Experiment) -> None:
    part = {name: one.arms[name] for name in ("base", "graph")}
    runs = [one, replace(one, name="part", seed=1, arms=part)]
    with pytest.raises(DataError, match=r"arm graph-10: trained with seeds \[0\], asked for \[0, 1\]"):
        sweep_figures(runs, seeds=[0, 1])
    both = [one, replace(one, name="arms-2", seed=1)]
    with pytest.raises(DataError, match=r"arm old: trained with seeds \[0\], asked for \[0, 1\]"):
        sweep_figures(both, {"old": [one]}, seeds=[0, 1])
    assert sweep_figures([one], {"old": [one]}, seeds=[0]) == sweep_figures([one], {"old": [one]})


def test_the_command_asks_for_its_seeds(
    one: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sgpipe.report.sweep.named_experiments", lambda root, patterns: patterns)
    monkeypatch.setattr("sgpipe.report.sweep.read_experiment", lambda root, item: replace(one, name=item))
    out = tmp_path / "sweep.json"
    with pytest.raises(DataError, match=r"asked for \[0, 1\]"):
        sweep_command(["arms-1"], seeds="0,1", out=out)
    with pytest.raises(ParamsError, match="whole numbers"):
        sweep_command(["arms-1"], seeds="0;1", out=out)
    assert not out.exists()
    sweep_command(["arms-1"], ["old=arms-1"], "0", out)
    assert '"old"' in out.read_text()
