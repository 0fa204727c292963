"""Training seeds side by side: what one run shows, two equal runs show with more images, and the base counts once."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sgpipe.datasets.tables import write_table
from sgpipe.errors import DataError, ParamsError
from sgpipe.evaluation.arms import arm_figures
from sgpipe.evaluation.summary import evaluation_figures
from sgpipe.evaluation.sweep import Experiment, SweepSamples, sweep_figures, sweep_samples
from sgpipe.evaluation.verdicts import Verdicts
from sgpipe.report import tables
from sgpipe.report.cli import sweep_command
from tests.evaluation.test_summary import SEEDS, world  # noqa: F401

LOSSES = {f"val_loss_{name}": 0.1 for name in ("graph", "empty", "shuffled", "swapped", "base")}


@pytest.fixture
def one(world: tuple) -> Experiment:  # noqa: F811
    verdicts, qualified, files, _ = world
    found, _ = evaluation_figures(verdicts, qualified, files)
    arms = arm_figures(found["arms"], {"graph": LOSSES})
    return Experiment("arms-1", "c" * 40, 0, "config", verdicts, qualified, arms)


def figures(
    experiments: Sequence[Experiment], others: Mapping[str, Sequence[Experiment]] | None = None, seeds: Sequence[int] | None = None
) -> dict[str, Any]:
    return sweep_figures(sweep_samples(experiments, others), seeds)


def test_equal_runs_pool_to_the_same_shares(one: Experiment) -> None:
    alone = figures([one])
    assert {name: arm["direction_accuracy"] for name, arm in alone["arms"].items()} == pytest.approx(
        {name: arm["direction_accuracy"] for name, arm in one.arms.items()}, abs=1e-6
    )
    again = replace(one, name="arms-2", seed=1, arms={**one.arms, "graph": {**one.arms["graph"], "val_loss_base": 0.3}})
    both = figures([one, again])
    graph = both["arms"]["graph"]
    assert graph["direction_accuracy"] == alone["arms"]["graph"]["direction_accuracy"]
    assert graph["direction_accuracy_images"] == 2 * alone["arms"]["graph"]["direction_accuracy_images"]
    assert set(graph["direction_accuracy_by_seed"]) == {"0", "1"} and graph["direction_accuracy_deviation"] == 0.0
    assert graph["swap_follow_rate"] == alone["arms"]["graph"]["swap_follow_rate"]
    assert graph["val_loss_base"] == pytest.approx(0.2) and "val_loss_base" not in both["arms"]["base"]
    assert both["arms"]["base"] == alone["arms"]["base"], "trained nothing, counted once"
    assert both["experiments"]["arms-2"] == {"commit": "c" * 40, "seed": 1, "config": "config"}
    text = tables.sweep(both).markdown()
    assert "| graph, neutral prompt |" in text and "arms-1 (ccccccc)" in text


def test_training_seeds_are_crossed_with_triples(one: Experiment, world: tuple) -> None:  # noqa: F811
    """A second seed that shows the opposite: as further images of the same triples the pooled half would look sure."""
    table = world[3]
    other = {"positive": "negative", "negative": "positive"}
    columns = [other.get(name, name) for name in table.column_names]
    turned = Verdicts(table.rename_columns(columns), one.verdicts.cases, SEEDS)
    found = figures([one, replace(one, name="arms-2", seed=1, verdicts=turned)])["arms"]["graph"]
    first, second = found["direction_accuracy_by_seed"].values()
    assert first > 0.8 and first + second == pytest.approx(1.0) and found["direction_accuracy"] == pytest.approx(0.5)
    assert found["direction_accuracy_low"] < second and found["direction_accuracy_high"] > first


def test_an_arm_is_pooled_over_the_experiments_that_trained_it(one: Experiment) -> None:
    part = {name: one.arms[name] for name in ("base", "graph")}
    found = figures([one, replace(one, name="part", seed=1, arms=part)])["arms"]
    seeds = {name: list(arm["direction_accuracy_by_seed"]) for name, arm in found.items()}
    assert seeds == {name: ["0", "1"] if name == "graph" else ["0"] for name in one.arms}


def test_another_recipe_stands_beside_the_arms(one: Experiment) -> None:
    runs = [replace(one, name=f"old-{seed}", seed=seed) for seed in (5, 6)]
    found = figures([one], {"old": runs})
    alone = figures([one])
    assert {name: row for name, row in found["arms"].items() if name != "old"} == alone["arms"]
    assert found["arms"]["old"]["direction_accuracy"] == alone["arms"]["graph"]["direction_accuracy"]
    assert set(found["arms"]["old"]["direction_accuracy_by_seed"]) == {"5", "6"}
    assert (found["training_seeds"], set(found["experiments"])) == (1, {"arms-1", "old-5", "old-6"})
    with pytest.raises(DataError, match="each may come once"):
        figures([one], {"old": [runs[0], runs[0]]})


def test_what_does_not_belong_together_is_refused(one: Experiment, world: tuple) -> None:  # noqa: F811
    with pytest.raises(DataError, match="each may come once"):
        figures([one, replace(one, name="again")])
    table, cases = world[3], one.verdicts.cases
    fewer = Verdicts(table.filter([row in SEEDS[:2] for row in table["seed"].to_pylist()]), cases, SEEDS[:2])
    with pytest.raises(DataError, match="other triples or seeds"):
        figures([one, replace(one, name="other", seed=1, verdicts=fewer)])


def test_an_arm_with_a_seed_of_its_own_is_that_seed_in_every_experiment(one: Experiment) -> None:
    """`graph-seed7` trains the same adapter in each: three experiments of it are one training seed, not three."""
    arms = {"base": one.arms["base"], "graph-seed7": one.arms["graph"]}
    own = {"graph-seed7": 7}
    runs = [replace(one, name=f"run-{seed}", seed=seed, arms=arms, seeds=own) for seed in range(3)]
    assert [run.trained("graph-seed7") for run in runs] == [7, 7, 7] and runs[1].trained("graph") == 1
    with pytest.raises(DataError, match=r"training seeds \[7, 7, 7\]: each may come once"):
        figures(runs)


def test_figures_of_other_judges_are_not_pooled(one: Experiment) -> None:
    predicate = min(one.qualified.used(one.judge))
    worse = replace(one.qualified.by_class[one.judge][predicate], ground_truth_accuracy=0.5)
    known = {**one.qualified.by_class, one.judge: {**one.qualified.by_class[one.judge], predicate: worse}}
    strict = replace(one.qualified, by_class=known)
    assert strict.used(one.judge) == one.qualified.used(one.judge) - {predicate}
    with pytest.raises(DataError, match=r"arms-2: its headline judge .* differ from those of arms-1"):
        figures([one, replace(one, name="arms-2", seed=1, qualified=strict)])


def test_an_arm_without_one_of_the_seeds_is_refused(one: Experiment) -> None:
    part = {name: one.arms[name] for name in ("base", "graph")}
    runs = [one, replace(one, name="part", seed=1, arms=part)]
    with pytest.raises(DataError, match=r"arm graph-10: trained with seeds \[0\], asked for \[0, 1\]"):
        figures(runs, seeds=[0, 1])
    both = [one, replace(one, name="arms-2", seed=1)]
    with pytest.raises(DataError, match=r"arm old: trained with seeds \[0\], asked for \[0, 1\]"):
        figures(both, {"old": [one]}, seeds=[0, 1])
    assert figures([one], {"old": [one]}, seeds=[0]) == figures([one], {"old": [one]})


def test_the_command_asks_for_its_seeds(one: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sgpipe.report.sweep.named_experiments", lambda root, patterns: patterns)
    monkeypatch.setattr("sgpipe.report.sweep.read_experiment", lambda root, item: replace(one, name=item))
    out = tmp_path / "sweep.json"
    with pytest.raises(DataError, match=r"asked for \[0, 1\]"):
        sweep_command(["arms-1"], seeds="0,1", out=out)
    with pytest.raises(ParamsError, match="whole numbers"):
        sweep_command(["arms-1"], seeds="0;1", out=out)
    assert not out.exists()
    sweep_command(["arms-1"], ["old=arms-1"], "0", out=out)
    assert '"old"' in out.read_text()


def test_figures_are_computed_again_from_the_samples(one: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Byte for byte, without an experiment; each sample is there once, undecided ones with no verdict."""
    other = replace(one, name="arms-2", seed=1, arms={**one.arms, "graph": {**one.arms["graph"], "val_loss_base": 0.3}})
    by_name = {"arms-1": one, "arms-2": other}
    monkeypatch.setattr("sgpipe.report.sweep.named_experiments", lambda root, patterns: patterns)
    monkeypatch.setattr("sgpipe.report.sweep.read_experiment", lambda root, item: by_name[item])
    out, again = tmp_path / "sweep.json", tmp_path / "again.json"
    sweep_command(["arms-1", "arms-2"], ["old=arms-1"], out=out)
    path = tmp_path / "sweep.parquet"
    sweep_command(source=path, out=again)
    assert again.read_bytes() == out.read_bytes() and not again.with_suffix(".parquet").exists()
    samples = SweepSamples.read(path)
    samples.write(tmp_path / "copy.parquet")
    assert (tmp_path / "copy.parquet").read_bytes() == path.read_bytes()

    rows = samples.table.to_pylist()
    keys = [(r["arm"], r["training_seed"], r["condition"], r["triple_id"], r["sampling_seed"]) for r in rows]
    assert len(set(keys)) == len(keys)
    mine = {key[3:]: r for key, r in zip(keys, rows, strict=True) if key[:3] == ("graph", 1, "shuffled")}
    assert len(mine) == len(one.verdicts.cases) * len(SEEDS)
    own, _ = one.headline_conditions("graph")
    expected = one.outcomes(replace(own, graph="shuffled"))
    for row, case in enumerate(one.verdicts.cases):
        for column, seed in enumerate(SEEDS):
            sample, value = mine[case.triple_id, seed], expected[row, column]
            assert sample["predicate"] == case.predicate and sample["decided"] == np.isfinite(value)
            assert sample["right"] == (bool(value) if np.isfinite(value) else None)


def test_samples_of_another_kind_are_refused(one: Experiment, tmp_path: Path) -> None:
    samples, path = sweep_samples([one]), tmp_path / "sweep.parquet"
    with pytest.raises(ParamsError, match="or --from FILE alone"):
        sweep_command(["arms-1"], source=path)
    with pytest.raises(ParamsError, match="give names of experiments"):
        sweep_command()
    with pytest.raises(DataError, match="no such file"):
        sweep_command(source=path)
    write_table(samples.table, path)
    with pytest.raises(DataError, match="not the samples of a sweep"):
        SweepSamples.read(path)
    with pytest.raises(DataError, match="arm base, training seed 0, own: 59 samples of 20 triples × 3 seeds"):
        SweepSamples(samples.table.slice(1), samples.facts)
