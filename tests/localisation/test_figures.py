"""Figures of interventions from small tables, and the stage's tables from a judge that is told what to say."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from sgpipe.backbones.base import Layout
from sgpipe.errors import ParamsError
from sgpipe.evaluation.judges import Scores
from sgpipe.evaluation.samples import Pixels
from sgpipe.evaluation.sampling_plan import Triple
from sgpipe.evaluation.statistics import Bootstrap
from sgpipe.localisation.config import Localise
from sgpipe.localisation.figures import halves, head_figures, localisation_figures, strongest
from sgpipe.localisation.measure import EFFECTS, HEADS, SAMPLES, Plan, confirm_heads, intervene
from sgpipe.params.blocks import LayerGroup
from tests.localisation.conftest import PAIRS, Open

BOOTSTRAP = Bootstrap(200, 0.95, 0)


def sample(triple: str, kind: str, scores: tuple[float | None, float | None], **more: Any) -> dict[str, Any]:
    plain = {"rows": None, "group": None, "block": None, "distance": 0.0, "seed": 0, "method": "patching"}
    return {**plain, "triple_id": triple, "kind": kind, "positive": scores[0], "negative": scores[1], **more}


def test_an_effect_is_the_ratio_of_sums_and_noising_follows_the_negative() -> None:
    effects = [
        {"triple_id": triple, "seed": 0, "contrast": kind, "rows": "text", "block": block, "step": step}
        | {"projected": share * size, "squared": size}
        for kind, share in (("denoising", 0.5), ("noising", 0.25), ("null", 0.0))
        for block in (0, 1)
        for step, size in ((0, 3.0), (1, 1.0))
        for triple in "ab"
    ]
    effects[0]["projected"] = 3.0  # of block 0, step 0, triple a: the whole
    yes, no, gone = (1.0, 0.0), (0.0, 1.0), (None, None)
    said = {"denoising": [yes, gone, yes, no], "noising": [no, no, yes, no]}
    samples = [
        sample(triple, kind, scores, rows="text", block=block)
        for kind, every in said.items()
        for (block, triple), scores in zip([(0, "a"), (0, "b"), (1, "a"), (1, "b")], every, strict=True)
    ]
    samples += [sample(t, run, yes, method="none") for run in ("positive", "negative") for t in "ab"]
    samples += [sample(t, "skip", gone, method="ablation", group="early", distance=0.5) for t in "ab"]
    tables = pa.Table.from_pylist(effects, schema=EFFECTS), pa.Table.from_pylist(samples, schema=SAMPLES)
    found = localisation_figures(*tables, {"early": [0, 1]}, BOOTSTRAP)
    rows = {(row["method"], row["kind"], row["group"], row["block"]): row for row in found["rows"]}
    assert len(rows) == len(found["rows"]) == 7
    first = rows["patching", "denoising", None, 0]
    assert first["effect"] == pytest.approx(5.5 / 8) and first["effects_by_step"] == {"0": pytest.approx(0.75), "1": 0.5}
    assert rows["patching", "denoising", "early", None]["effect"] == pytest.approx(9.5 / 16)
    assert (first["follows"], first["images"]) == (1.0, 1) and first["effect_low"] <= first["effect"] <= first["effect_high"]
    assert rows["patching", "noising", None, 0]["follows"] == 1.0 and rows["patching", "noising", None, 1]["follows"] == 0.5
    skipped = rows["ablation", "skip", "early", None]
    assert (skipped["objects_present"], skipped["arranged"], skipped["distance"], skipped["images"]) == (0.0, 0.0, 0.5, 0)
    assert (
        found["null_effect"] == found["null_effect_largest"] == 0.0 and found["unpatched"]["positive"]["direction_accuracy"] == 1.0
    )
    assert [found["unpatched"]["negative"][f"distance{end}"] for end in ("", "_low", "_high")] == [0, 0, 0], "a size, no share"


def test_heads_are_found_on_one_half_and_asked_on_the_other() -> None:
    names = [f"t{i}" for i in range(8)]
    first, second = halves(names)
    assert len(first) == len(second) == 4 and first | second == set(names)
    strong = {**dict.fromkeys(first, (0, 1)), **dict.fromkeys(second, (2, 0))}
    rows = [
        {"triple_id": name, "seed": 0, "set": "attribution", "block": b, "head": h, "step": 0, "squared": 1.0}
        | {"projected": 0.6 if strong[name] == (b, h) else 0.1 if (b, h) == (1, 1) else 0.0}
        for name in names
        for b in range(3)
        for h in range(2)
    ]
    table = pa.Table.from_pylist(rows, schema=HEADS)
    sets = strongest(table, 2)
    assert set(sets["first_half"]) == {(0, 1), (1, 1)} and set(sets["second_half"]) == {(2, 0), (1, 1)}
    assert set(sets["0.1"]) | set(sets["2.0"]) == {(0, 1), (2, 0)} and not set(sets["random"]) & {(0, 1), (2, 0)}
    asked = [
        {"triple_id": name, "seed": 0, "set": kind, "block": None, "head": None, "step": 0, "squared": 1.0}
        | {"projected": 0.7 if (name in first) == (kind == "first_half") else 0.1}
        for name in names
        for kind in ("first_half", "second_half", "random")
    ]
    alone = [{**row, "set": "head", "projected": row["projected"] / 2} for row in rows]
    found = head_figures(pa.concat_tables([table, pa.Table.from_pylist(asked + alone, schema=HEADS)]), sets, BOOTSTRAP)
    assert [each["effect"] for each in found["heads"]] == pytest.approx([0.15, 0.15])
    assert [each["attribution"] for each in found["heads"]] == pytest.approx([0.3, 0.3])
    halved = found["head_sets"]["first_half"]
    assert halved["effect_first"] == pytest.approx(0.7) and halved["effect_second"] == pytest.approx(0.1)
    assert found["head_overlap"] == pytest.approx(1 / 3)


class Sure:
    """Sees c⁺ in images of at least this brightness, and no objects in black ones."""

    def __init__(self) -> None:
        self.images = 0

    def scores(self, images: Pixels, statements: Sequence[Sequence[Triple]]) -> Scores:
        self.images += len(images)
        assert all(len(each) == 2 and each[0][1] == each[1][1] for each in statements)
        return np.array([[1.0, 0.0] if i % 2 else [np.nan, np.nan] for i in range(len(images))], np.float32)


def test_tables_have_a_row_for_each_item_and_intervention(runs: Open) -> None:
    made, items = runs()
    config = Localise(rows=("image", "graph"), ablations=("skip", "mean"), steps=made.steps, blocks=LayerGroup.parse("0..1"))
    plan, judge, ticks = Plan(config, [0, 1], {"late": [1, 2]}), Sure(), []
    found = intervene(made, plan, items, judge, ticks.append)
    steps = len(made.active)
    assert len(found["effects"]) == 2 * steps * PAIRS * 2 * 4 and sum(ticks) == plan.units * PAIRS
    assert len(found["samples"]) == judge.images == PAIRS * (2 + 2 * 2 * 3 + 3 * 2)
    assert found["samples"]["positive"].null_count == len(found["samples"]) / 2
    null = [row for row in found["effects"].to_pylist() if row["contrast"] == "null"]
    assert all(row["projected"] == 0 and row["squared"] > 0 for row in null)
    plain = [row["distance"] for row in found["samples"].to_pylist() if row["method"] == "none"]
    assert plain == [0.0] * (2 * PAIRS) and found["heads"]["set"].unique().to_pylist() == ["attribution"]
    sets = strongest(found["heads"], 2)
    heads = confirm_heads(made, items, sets, ticks.append)["heads"]
    assert heads["set"].unique().to_pylist() == ["head", "first_half", "second_half", "random"]
    assert len(heads) == steps * PAIRS * len(sets)


def test_what_the_runs_lack_is_said_by_its_knob(runs: Open) -> None:
    base, items = runs(None)
    config = Localise(steps=base.steps)
    with pytest.raises(ParamsError, match=r"localise\.ablations: got graph; the runs have no graph tokens"):
        intervene(base, Plan(config, [0], {}), items, Sure(), print)
    layout = base.generator.denoiser.layout
    assert isinstance(layout, Layout)
    with pytest.raises(ParamsError, match=r"localise\.blocks: block 9 is out of range"):
        Plan.of(Localise(blocks=LayerGroup.parse("9")), maps_of(), layout)


def maps_of() -> Any:
    from sgpipe.attention_maps.config import Maps

    return Maps({"early": LayerGroup.parse("0")})
