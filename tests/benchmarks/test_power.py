"""The bench of block groups at a tiny budget: what is trained, that finished trainings stay, and that figures are of all seeds."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.power import RANDOM, TOKENS, Bench, Cell, Design, block_groups, numbers, resolved, subset
from benchmarks.power import trained as trainings
from sgpipe.attention_maps.config import Maps
from sgpipe.errors import DataError, ParamsError
from sgpipe.evaluation.config import Evaluate, JudgeParams
from sgpipe.evaluation.config import Judge as Named
from sgpipe.evaluation.crossed import Crossed
from sgpipe.evaluation.judges import Scores
from sgpipe.evaluation.samples import Pixels
from sgpipe.evaluation.sampling_plan import EvaluationTriple, Triple
from sgpipe.evaluation.statistics import Bootstrap
from sgpipe.graphs.prompts import words
from sgpipe.params.blocks import LayerGroup
from tests.training.world import ALONE, LORA, World, tiny_train, write_world
from tests.training.world import TOKENS as PLAIN

GROUPS = {"early": (0,), "middle": (1, 2), "all": (0, 1, 2), TOKENS: None, RANDOM: ()}
CROP = (0.0, 0.0, 8.0, 8.0)
DESIGN = Design(GROUPS, (2, 4), (3, 6), (2, 4), (0, 1), (0, 1, 2), 2)


class Bright:
    """Prefers c⁺ where the image's red is brighter than its blue; abstains of a grey image."""

    def scores(self, images: Pixels, statements: Sequence[Sequence[Triple]]) -> Scores:
        red, blue = (images[..., channel].astype(float).mean((1, 2)) for channel in (0, 2))
        return np.stack([red, blue], 1).astype(np.float32)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return write_world(tmp_path_factory.mktemp("world"), train=8, val=3)


def bench(world: World, state: Path, design: Design) -> Bench:
    sections = {
        "lora": LORA, "train": tiny_train(keep_epochs=()), "graph_tokens": PLAIN, "backbone": world.backbone, "sgdiff": None,
        "maps": Maps({name: LayerGroup.parse(list(GROUPS[name])) for name in ("early", "middle")}),
        "evaluate": Evaluate(adapters={}, conditions={"neutral": ("positive", "negative")}, steps=1, batch_size=2),
        "judge": JudgeParams(judges={"exact": Named(kind="sgworld")}, headline="exact"),
    }  # fmt: skip
    cases = [
        EvaluationTriple(
            each.triple_id, 0, (0.0, 0.0, 8.0, 8.0), each.graph, each.negative, kind, {"neutral": words(each.graph, "neutral")}
        )
        for each, kind in zip(world.data().held_out, ("swap", "replace", "swap"), strict=True)
    ]
    return Bench(sections, design, world.data(), cases, (0,), Bright(), ALONE, state)


def test_every_combination_is_trained_once_and_tokens_have_no_rank(world: World, tmp_path: Path) -> None:
    cells = DESIGN.cells()
    assert len(cells) == len(set(cells)) == 2 * 2 * (4 * 2 + 1) and [cell.seed for cell in cells] == [0] * 18 + [1] * 18
    assert DESIGN.cell(TOKENS, 3, 2, 0) == DESIGN.cell(TOKENS, 3, 4, 0)
    made = bench(world, tmp_path, DESIGN)
    assert block_groups(made.sections) == GROUPS
    blocks = {DESIGN.blocks(Cell(RANDOM, 3, 4, seed)) for seed in range(12)}
    assert blocks == {(0, 1), (0, 2), (1, 2)}, "drawn anew for each training seed"
    arm, data = resolved(Cell("middle", 6, 4, 1), DESIGN, made.sections, made.data)
    assert arm.settings.lora.blocks.indices == (1, 2) and (arm.settings.lora.rank, arm.settings.lora.alpha) == (4, 4)  # type: ignore[attr-defined]
    assert (arm.train.epochs, arm.train.keep_epochs, arm.train.seed) == (2, (1, 2), 1)
    assert arm.train.kept_steps(len(data.train)) == {2: 1, 4: 2}, "adapters are kept at the budgets of steps"
    assert len({each.triple_id for each in data.train}) == 6
    with pytest.raises(ParamsError, match="--steps: got '4,x'"):
        numbers("4,x", "--steps")


def test_subsets_hold_one_another_and_are_of_all_classes(world: World) -> None:
    examples = [replace(each, triple_id=f"{each.triple_id}-{n}") for each in world.data().train for n in range(3)]
    few, many = (subset(examples, count, 24) for count in (8, 16))
    assert {each.triple_id for each in few} < {each.triple_id for each in many} and len(few) == len(many) == 24
    assert set(Counter(each.predicate for each in few).values()) == {3} == set(Counter(each.triple_id for each in few).values())
    with pytest.raises(DataError, match="--triples: got 25; there are 24"):
        subset(examples, 25, 25)


def test_finished_trainings_stay_and_figures_are_of_complete_seeds(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = Design({TOKENS: None, RANDOM: ()}, (1, 2), (4,), (2,), (0, 1), (0, 1, 2), 2)
    made = bench(world, tmp_path, small)
    first = made.outcomes(small.cells()[0])
    assert first.num_rows == 2 * 3 and set(first["steps"].to_pylist()) == {1, 2}
    crossed = Crossed(Bootstrap(100, 0.95, 0))
    with pytest.raises(DataError, match="0 complete training seeds"):
        made.figures({small.cells()[0]: first}, crossed, 0.8)
    outcomes = dict(trainings(made, None))
    assert len(outcomes) == 4 and outcomes[small.cells()[0]].equals(first)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".parquet"] * 4, "checkpoints of a finished training go"
    monkeypatch.setattr("benchmarks.power.fit", None)
    assert all(table.equals(outcomes[cell]) for cell, table in trainings(made, None)), "nothing is trained again"
    figures = made.figures(outcomes, crossed, 0.8)
    assert set(figures["right"]["budgets"]) == {"1 steps, 4 triples, rank 2", "2 steps, 4 triples, rank 2"}
    grid = made.grid(outcomes[small.cells()[0]], 2)
    assert grid.shape == (3, 1) and set(np.unique(grid)) <= {0.0, 1.0}
    shown = figures["direction_accuracy"]["budgets"]["2 steps, 4 triples, rank 2"]["groups"][TOKENS]["accuracy"]
    tokens = [made.grid(outcomes[small.cell(TOKENS, 4, 2, seed)], 2)[[0, 2]] for seed in (0, 1)]
    assert shown == pytest.approx(np.mean(tokens)), "of the triples whose negative swaps the roles"
    other = replace(made, sampling_seeds=(1,))
    with pytest.raises(DataError, match="of other parameters"):
        other.outcomes(small.cells()[0])


def test_time_that_is_over_starts_no_training(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(trainings(bench(world, tmp_path, DESIGN), 0.0)) == []
    assert "0 of 36 trainings" in capsys.readouterr().err
