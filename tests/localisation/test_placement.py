"""Placement: which arms are trained where, that a killed run goes on, and that intervals hold the training seed."""

from collections.abc import Sequence
from dataclasses import replace as with_fields
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from sgpipe.arms.adapter import read_about
from sgpipe.arms.kinds.base import Sections
from sgpipe.arms.resolve import Arm
from sgpipe.backbones.config import Backbone
from sgpipe.backbones.families import layout_of
from sgpipe.cli import app
from sgpipe.errors import ParamsError
from sgpipe.evaluation.config import Evaluate, JudgeParams, Statistics
from sgpipe.evaluation.config import Judge as JudgeOptions
from sgpipe.evaluation.judges import Scores
from sgpipe.evaluation.sampling_plan import EvaluationTriple
from sgpipe.evaluation.sweep import SWEEP, SweepSamples
from sgpipe.graph_encoder.config import GraphTokens
from sgpipe.localisation import placement
from sgpipe.localisation.pairs import items_of
from sgpipe.localisation.placement import Trials, budgeted, limited, placement_figures, placement_samples, placements
from tests.localisation.conftest import PAIRS
from tests.training.world import ALONE, LORA, World, tiny_train, write_world

GROUPS = {"early": (0,), "late": (1, 2)}
JUDGES = JudgeParams({"sure": JudgeOptions(kind="sgworld")}, "sure")
STATISTICS = Statistics(resamples=200)


def arms_of(backbone: Backbone, groups: dict[str, Sequence[int]] | None = None, entries: Sequence[int] = (0, 2)) -> dict[str, Arm]:
    sections = Sections(LORA, budgeted(tiny_train(compile=True), 1), GraphTokens(), backbone)
    return placements(groups or dict(GROUPS), entries, sections, layout_of(Path(backbone.model)))


def blocks(arm: Arm) -> tuple[Any, Any, int]:
    lora: Any = arm.settings.lora  # type: ignore[attr-defined]
    return lora.blocks.indices, lora.single_blocks.indices, arm.settings.graph_tokens.enter  # type: ignore[attr-defined]


def test_an_arm_for_each_group_and_for_each_later_entry(backbone: Backbone) -> None:
    arms = arms_of(backbone)
    assert {name: blocks(arm) for name, arm in arms.items()} == {
        "lora-early": ((0,), (), 0), "lora-late": ((1, 2), (), 0), "lora-all": ((0, 1, 2), (), 0), "enter-2": ((0, 1, 2), (), 2),
    }  # fmt: skip
    assert not any(arm.train.compile or arm.train.keep_epochs for arm in arms.values())
    with pytest.raises(ParamsError, match=r"maps\.groups\.all: the name stands for"):
        arms_of(backbone, {"all": (0,)})
    with pytest.raises(ParamsError, match=r"graph_tokens\.enter: got 9; valid: 0\.\.3"):
        arms_of(backbone, entries=(9,))
    with pytest.raises(ParamsError, match=r"none of lora\.single_blocks .* has it; the same is done there by proj_out"):
        arms_of(backbone, {"single": (3,)})


class Bright:
    """Chooses c⁺ in every other image, and sees no objects in the first one."""

    def scores(self, images: Any, statements: Sequence[Any]) -> Scores:
        rows = [[1.0, 0.0] if i % 2 else [0.0, 1.0] for i in range(len(images))]
        return np.array([[np.nan, np.nan], *rows[1:]], np.float32)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return write_world(tmp_path_factory.mktemp("placement"))


@pytest.fixture
def trials(world: World, cases: list[EvaluationTriple], monkeypatch: pytest.MonkeyPatch) -> Trials:
    """Two placements from two training seeds, trained on four triples in one step."""
    monkeypatch.setattr(placement, "open_judge", lambda *given: Bright())
    arms = {name: arm for name, arm in arms_of(world.backbone).items() if name in ("lora-all", "enter-2")}
    evaluate = Evaluate(adapters={}, conditions={"neutral": ("positive", "negative")}, steps=2, batch_size=4)
    return Trials(arms, (0, 1), items_of(cases, PAIRS, (0, 1)), limited(world.data(), 4), world.backbone, evaluate, JUDGES, ALONE)


def test_a_killed_run_goes_on_and_gives_the_same_table(trials: Trials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    table = trials.run(whole)
    assert table.schema == SWEEP and len(table) == 2 * 2 * 2 * 2 * PAIRS
    made: list[str] = []
    fit = placement.fit

    def dying(arm: Arm, *given: Any) -> Any:
        made.append(f"{arm.name}.{arm.train.seed}")
        if len(made) == 3:
            raise KeyboardInterrupt
        return fit(arm, *given)

    monkeypatch.setattr(placement, "fit", dying)
    with pytest.raises(KeyboardInterrupt):
        trials.run(killed)
    assert trials.run(killed).equals(table)
    assert made == ["lora-all.0", "enter-2.0", "lora-all.1", "lora-all.1", "enter-2.1"]
    assert not list(killed.glob("*.training"))


def test_images_are_those_of_the_trained_adapters(trials: Trials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is loaded as it was saved: with its blocks, its entry, its training seed."""
    seen: list[tuple[str, int, int]] = []
    samples = Trials._samples

    def looking(self: Trials, adapter: Path, *given: Any) -> pa.Table:
        about = read_about(adapter)
        seen.append((about["arm"], about["settings"]["graph_tokens"].get("enter", 0), about["train"]["seed"]))
        return samples(self, adapter, *given)

    monkeypatch.setattr(Trials, "_samples", looking)
    rows = pl.DataFrame(with_fields(trials, seeds=(3,)).run(tmp_path))
    assert seen == [("lora-all", 0, 3), ("enter-2", 2, 3)]
    own = rows.filter(arm="enter-2", condition="own")
    assert own["training_seed"].to_list() == [3] * 2 * PAIRS and own["sampling_seed"].to_list() == [0, 1] * PAIRS
    assert own["present"].to_list() == own["decided"].to_list() == [False, *[True] * (2 * PAIRS - 1)]
    assert own["right"].to_list() == [None, True, False, True]


def test_fewer_triples_are_spread_and_too_many_refused(world: World) -> None:
    data = world.data()
    found = limited(data, 4)
    assert len(found.train) == 4 and found.train[0] == data.train[0] and found.train[-1] == data.train[-1] and not found.held_out
    with pytest.raises(ParamsError, match="--triples: got 99; there are 20 train triples"):
        limited(data, 99)


def told(rights: dict[tuple[str, int], list[bool]]) -> pa.Table:
    """Rows of arms and training seeds: whether g⁺'s direction is seen, by triple; g⁻ is followed where it is."""
    rows = [
        {"arm": arm, "training_seed": seed, "triple_id": f"t{i}", "predicate": "left of", "sampling_seed": 0, "condition": kind}
        | {"present": True, "decided": True, "right": right == (kind == "own")}
        for (arm, seed), several in rights.items()
        for kind in ("own", "swapped")
        for i, right in enumerate(several)
    ]
    return pa.Table.from_pylist(rows, schema=SWEEP)


def read(table: pa.Table, arms: dict[str, Arm]) -> tuple[SweepSamples, dict[str, Any]]:
    samples = placement_samples(table, arms, "exact", STATISTICS)
    return samples, placement_figures(samples, arms, 20)


def test_an_interval_holds_the_training_seed(backbone: Backbone, tmp_path: Path) -> None:
    """Of seeds that agree it is that of triples; of seeds that contradict each other it is wide."""
    arms = {name: arm for name, arm in arms_of(backbone).items() if name != "lora-late"}
    half = [i % 2 == 0 for i in range(20)]
    agree = {("lora-early", seed): half for seed in (0, 1, 2)}
    apart = {("lora-all", seed): [seed != 1] * 19 + [seed == 1] for seed in (0, 1, 2)}
    late = {("enter-2", seed): [True] * 15 + [False] * 5 for seed in (0, 1, 2)}
    samples, found = read(told(agree | apart | late), arms)
    early, every = found["lora"]["early"], found["lora"]["all"]
    assert early["direction_accuracy"] == 0.5 and every["direction_accuracy"] == pytest.approx((0.95 + 0.05 + 0.95) / 3)
    assert 0.3 < early["direction_accuracy_high"] - early["direction_accuracy_low"] < 0.6
    assert every["direction_accuracy_high"] - every["direction_accuracy_low"] > 0.9
    assert every["direction_accuracy_by_seed"] == {"0": pytest.approx(0.95), "1": pytest.approx(0.05), "2": pytest.approx(0.95)}
    assert early["swap_follow_rate"] == 0.5 and found["enter"]["2"]["direction_accuracy"] == 0.75
    assert found["enter"]["0"] == every and set(found["lora"]) == {"early", "all"} and set(found["enter"]) == {"0", "2"}
    assert found["budget"] == {
        "train_triples": 20, "steps": 5, "batch_size": 4, "learning_rate": 1e-2, "precision": "float32", "rank": 4,
    }  # fmt: skip
    assert (found["training_seeds"], found["triples"], found["seeds"], found["judge"]) == ([0, 1, 2], 20, 1, "exact")
    samples.write(tmp_path / "placement.parquet")
    assert placement_figures(SweepSamples.read(tmp_path / "placement.parquet"), arms, 20) == found


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--seeds", "0,0"], "--seeds: got '0,0'; write different whole numbers with commas between"),
        (["--seeds", "a"], "--seeds: got 'a'"),
        (["--enter", "3,-1"], "--enter: got '3,-1'"),
        (["--precision", "int8"], "--precision.*got 'int8'"),
    ],
)
def test_what_cannot_be_trained_is_refused(given: list[str], says: str, repo_root: Path) -> None:
    with pytest.raises(ParamsError, match=says):
        CliRunner().invoke(app, ["placement", "--params", str(repo_root / "params.yaml"), *given], catch_exceptions=False)
