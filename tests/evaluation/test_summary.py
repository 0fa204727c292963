"""Figures of arms whose images are known, by judges whose worth is known."""

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

import stages.ablation
from sgpipe.arms.groups import GROUPS
from sgpipe.errors import DataError
from sgpipe.evaluation.ablation import ablation_figures
from sgpipe.evaluation.arms import arm_figures
from sgpipe.evaluation.calibration import calibrations, questions
from sgpipe.evaluation.config import Ablation, JudgeParams, Statistics
from sgpipe.evaluation.config import Judge as Named
from sgpipe.evaluation.groups import image_groups
from sgpipe.evaluation.judges import Judge
from sgpipe.evaluation.samples import CALIBRATION, FILE, SAMPLES, VERDICTS, ImageFile, to_png, write_image_file
from sgpipe.evaluation.sampling_plan import EvaluationTriple, SampleRequest, plan
from sgpipe.evaluation.sensitivity import distances, two_by_two
from sgpipe.evaluation.summary import QualifiedJudges, evaluation_figures
from sgpipe.evaluation.sweep import Experiment, sweep_figures, sweep_samples
from sgpipe.evaluation.verdicts import Condition, Scored, Verdicts
from sgpipe.graphs.scene_graph import SceneGraph
from sgpipe.report import tables
from sgpipe.report.page import headline_figure
from sgpipe.runs import progress
from sgpipe.runs.atomic import plain, write_json
from tests.evaluation.conftest import Blind, FakeGenerator, Oracle, Written

DRAW = {"neutral": ("positive", "negative", "empty", "shuffled"), "relational": ("positive", "negative")}
SEEDS = (0, 1, 2)
JUDGES = JudgeParams(
    judges={"oracle": Named(kind="sgworld"), "blind": Named(kind="open_clip", model="local-dir:x")}, headline="oracle"
)
STATISTICS = Statistics(resamples=200)


def draw_arm(arm: str, given: str, cases: Sequence[EvaluationTriple], written: Written, folder: Path) -> ImageFile:
    requests: list[SampleRequest] = plan(cases, DRAW, SEEDS, given)
    pixels = FakeGenerator(written).sample(
        [d.text for d in requests], [d.scene for d in requests], [d.noise_seed for d in requests], steps=4, size=16
    )
    rows = [(d.triple_id, d.prompt, d.graph, d.seed, d.text, to_png(p)) for d, p in zip(requests, pixels, strict=True)]
    table = pa.table(dict(zip(SAMPLES.names, zip(*rows, strict=True), strict=True)), schema=SAMPLES)
    write_image_file([table], folder / arm / FILE, {"arm": arm})
    return ImageFile(folder / arm)


def said(
    judges: dict[str, Judge], files: dict[str, ImageFile], cases: Sequence[EvaluationTriple], written: Written
) -> tuple[pa.Table, pa.Table]:
    """What `judging` stores, by a plain loop."""
    by_id = {case.triple_id: case for case in cases}
    verdicts: list[tuple[object, ...]] = []
    asked: list[tuple[object, ...]] = []
    for name, judge in judges.items():
        for arm, file in files.items():
            items = file.items.to_pylist()
            shown = [by_id[item["triple_id"]] for item in items]
            scores = judge.scores(file.read(range(len(file))), [(c.positive, c.negative) for c in shown])
            for item, (positive, negative) in zip(items, scores.tolist(), strict=True):
                key = (arm, item["triple_id"], item["prompt"], item["graph"], item["seed"], name)
                verdicts.append((*key, 0, None, positive, negative))
        listed = questions(cases)
        truth = np.stack([written.image(cases[q.image].positive, 0) for q in listed])
        scores = judge.scores(truth, [(q.positive, q.negative) for q in listed])
        for q, (positive, negative) in zip(listed, scores.tolist(), strict=True):
            asked.append((name, q.triple_id, q.predicate, q.kind, positive, negative))

    def table(rows: list[tuple[object, ...]], schema: pa.Schema) -> pa.Table:
        columns = [
            pa.array(column, field.type, from_pandas=True) for column, field in zip(zip(*rows, strict=True), schema, strict=True)
        ]
        return pa.table(columns, schema=schema)

    return table(verdicts, VERDICTS), table(asked, CALIBRATION)


@pytest.fixture(scope="module")
def world(
    cases: list[EvaluationTriple], written: Written, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Verdicts, QualifiedJudges, dict[str, ImageFile], pa.Table]:
    folder = tmp_path_factory.mktemp("images")
    arms = {"base": "none", "text_only": "empty", "graph": "graphs", "graph-10": "graphs", "graph-20": "graphs"}
    files = {arm: draw_arm(arm, given, cases, written, folder) for arm, given in arms.items()}
    verdicts, asked = said({"oracle": Oracle(written), "blind": Blind()}, files, cases, written)
    return Verdicts(verdicts, cases, SEEDS), QualifiedJudges.of(JUDGES, asked, STATISTICS), files, verdicts


def test_a_judge_that_sees_is_certified_and_one_that_does_not_is_refused(world: tuple) -> None:
    _, qualified, _, _ = world
    seen, blind = qualified.by_class["oracle"], qualified.by_class["blind"]
    for predicate in ("left of", "right of", "above", "below"):
        calibration = seen[predicate]
        assert (calibration.ground_truth_accuracy, calibration.abstained, calibration.order_bias) == (1.0, 0.0, 0.0)
        assert (calibration.sensitivity, calibration.specificity) == (1.0, 1.0)
        assert calibration.chance_abstained > 0.5
    assert qualified.used("oracle") == {"left of", "right of", "above", "below", "riding"}
    assert np.isnan(seen["riding"].order_bias) and np.isnan(seen["riding"].specificity)
    assert blind["left of"].ground_truth_accuracy < 0.8 and qualified.used("blind").isdisjoint({"left of", "above"})
    assert blind["left of"].chance_level == blind["left of"].ground_truth_accuracy, "words alone decide, whatever the image"
    assert blind["left of"].order_bias == pytest.approx(2 * blind["left of"].ground_truth_accuracy - 1)
    figures = qualified.figures()
    assert figures["oracle"]["refused"] == [] and figures["oracle"]["classes_used"] == 5
    assert {"left of", "above"} <= set(figures["blind"]["refused"])


def test_the_false_question_needs_a_picture_of_what_is_true(cases: list[EvaluationTriple]) -> None:
    """Of `riding` replaced by `pulling` there is none here; with a triple of that class there is, and c⁻ is true of it."""
    assert not any(q.kind == "false" for q in questions(cases))
    graph = SceneGraph.of("horse", "pulling", "box")
    puller = EvaluationTriple("p", 99, cases[0].crop, graph, graph.negated("replace", "pushing"), "replace", {})
    asked = [q for q in questions([*cases, puller]) if q.kind == "false"]
    assert {q.predicate for q in asked} == {"riding"} and all(q.image == len(cases) for q in asked)
    assert {(q.positive, q.negative) for q in asked} == {(("horse", "riding", "box"), ("horse", "pulling", "box"))}


def test_figures_of_known_arms(world: tuple, cases: list[EvaluationTriple]) -> None:
    verdicts, qualified, files, _ = world
    found, rows = evaluation_figures(verdicts, qualified, files)
    graph = found["arms"]["graph"]["neutral"]
    directional = sum(case.kind == "swap" for case in cases) * len(SEEDS)
    truth = [
        verdicts.scored(Condition("graph", "neutral", "positive"), "oracle").choices[row]
        for row, case in enumerate(cases)
        if case.kind == "swap"
    ]
    assert graph["positive"]["direction_accuracy"] == pytest.approx(np.mean(truth))
    assert graph["positive"]["direction_accuracy_images"] == directional
    assert 0.8 < graph["positive"]["direction_accuracy"] < 1.0 and graph["positive"]["objects_present"] == 1.0
    assert graph["negative"]["direction_accuracy"] == pytest.approx(1 - graph["positive"]["direction_accuracy"])
    assert graph["positive"]["direction_accuracy_corrected"] == pytest.approx(graph["positive"]["direction_accuracy"])
    assert 0.25 < found["arms"]["base"]["neutral"]["none"]["direction_accuracy"] < 0.75
    compared = found["comparisons"]["neutral"]
    in_words = {f"{a}-{b}_in_words" for a in ("graph", "graph-10", "graph-20") for b in ("base", "text_only")}
    shuffled = {name for name in compared if name.endswith("_shuffled")}
    assert set(compared) - in_words - shuffled == {
        "graph-base", "graph-text_only", "graph-graph_empty", "text_only-base",
        "graph-10-base", "graph-10-text_only", "graph-10-graph-10_empty",
        "graph-20-base", "graph-20-text_only", "graph-20-graph-20_empty",
    }  # fmt: skip
    assert in_words < set(compared) and all(row["pairs"] for row in compared.values())
    against = compared["graph-base"]
    assert against["difference_low"] > 0 and against["p"] < 0.05 and against["p_holm"] >= against["p"]
    assert compared["text_only-base"]["difference"] == 0.0 and compared["text_only-base"]["p"] == 1.0
    same = found["sensitivity"]["graph"]["neutral"]
    assert same["judges"]["oracle"]["accuracy"] > 0.85 and same["judges"]["blind"]["group"] == 0.0
    assert same["mse"] < same["mse_other_seed"] and same["mse_ratio_low"] < same["mse_ratio"]
    assert found["needed"]["graph"]["triples"] < found["needed"]["graph"]["for_0.60"] == 199
    refused = [row for row in rows if not row["used"]]
    assert not refused and len(rows) == 5 * (2 + 3 * 4)
    of_graph = {r["predicate"]: r for r in rows if (r["arm"], r["graph"]) == ("graph", "positive")}
    row = of_graph["left of"]
    assert row["images"] == 12 and row["p_holm"] >= row["p"] and row["difference"] > 0
    assert of_graph["above"]["images"] == 12 and of_graph["above"]["p"] is None, "the base requests none"


@pytest.mark.parametrize("wins", [True, False])
def test_classes_better_than_base_are_won(world: tuple, cases: list[EvaluationTriple], wins: bool) -> None:
    """All four triples of a class won, or all lost: the same p below 0.05, and only the former is better than the base."""
    _, qualified, files, table = world
    few = [case for case in cases if case.predicate == "below"]
    ids = {case.triple_id for case in few}
    table = table.filter([name in ids for name in table["triple_id"].to_pylist()])
    right = [float((arm == "graph") == wins) for arm in table["arm"].to_pylist()]
    for name, values in (("positive", right), ("negative", [1 - value for value in right])):
        field = VERDICTS.field(name)
        table = table.set_column(table.schema.get_field_index(name), field, pa.array(values, field.type))
    found, rows = evaluation_figures(Verdicts(table, few, SEEDS), qualified, files)
    (row,) = [r for r in rows if (r["arm"], r["graph"]) == ("graph", "positive") and r.get("p") is not None]
    assert (row["predicate"], row["difference"]) == ("below", 1.0 if wins else -1.0)
    assert row["p_holm"] == row["p"] == pytest.approx(0.0455, abs=1e-4), "classes without a pair are not tested"
    assert found["classes_better_than_base"]["graph"] == int(wins)


def test_a_refused_class_has_no_figure(world: tuple) -> None:
    verdicts, qualified, files, _ = world
    blind = JudgeParams(judges=JUDGES.judges, headline="blind")
    found, rows = evaluation_figures(verdicts, QualifiedJudges.of(blind, qualified.answers, STATISTICS), files)
    refused = [row for row in rows if not row["used"]]
    assert refused and all("accuracy" not in row for row in refused)
    assert found["arms"]["graph"]["neutral"]["positive"]["direction_accuracy_images"] < 48
    assert "objects_present" not in found["arms"]["graph"]["neutral"]["positive"]


def test_arms_side_by_side(world: tuple) -> None:
    verdicts, qualified, files, _ = world
    found, _ = evaluation_figures(verdicts, qualified, files)
    losses = {f"val_loss_{name}": 0.1 for name in ("graph", "empty", "shuffled", "swapped", "base")}
    arms = arm_figures(found["arms"], {"graph": losses})
    assert arms["graph"]["val_loss_swapped"] == 0.1 and "val_loss_graph" not in arms["base"]
    own = found["arms"]["graph"]["neutral"]
    assert arms["graph"]["direction_accuracy_low"] == own["positive"]["direction_accuracy_low"]
    assert arms["graph"]["swap_follow_rate"] == pytest.approx(1 - own["negative"]["direction_accuracy"])
    assert arms["base"]["swap_follow_rate"] == pytest.approx(1 - arms["base"]["direction_accuracy"])
    with pytest.raises(DataError, match="val_loss_base is missing"):
        arm_figures(found["arms"], {"graph": {k: v for k, v in losses.items() if k != "val_loss_base"}})


def test_every_epoch_moves_the_bar(world: tuple, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the stage itself, whose inputs are these verdicts."""
    verdicts, qualified, files, _ = world
    monkeypatch.setattr(progress, "_options", lambda what, unit: {"desc": what, "unit": unit, "mininterval": 0, "miniters": 1})
    config, evaluate = Ablation(epochs=(10, 20), runs=("graph",)), SimpleNamespace(adapters={"graph": "graphs"})
    for name, found in {
        "read_params": (config, evaluate, None, None), "read_judged": (verdicts, qualified), "image_files": files,
        "record": nullcontext(), "to_builtins": {}, "write_metrics": None,
    }.items():  # fmt: skip
        monkeypatch.setattr(stages.ablation, name, lambda *_, found=found: found)
    stages.ablation.main()
    said = capsys.readouterr().err
    assert "ablation: 100%" in said and "2/2" in said


def test_epochs_that_are_the_same_do_not_differ(world: tuple) -> None:
    verdicts, qualified, files, _ = world
    found = ablation_figures(verdicts, qualified, files, (10, 20), ("graph",))
    assert found["epochs"]["10"] == found["epochs"]["20"]
    compared = found["comparisons"]["20-10"]
    assert (compared["difference"], compared["difference_low"], compared["p"]) == (0.0, 0.0, 1.0)
    assert compared["pairs"] == 48
    whole, _ = evaluation_figures(verdicts, qualified, files)
    own = whole["arms"]["graph"]["neutral"]["positive"]
    assert found["epochs"]["10"]["direction_accuracy"] == own["direction_accuracy"]
    assert found["epochs"]["10"]["direction_accuracy_low"] == own["direction_accuracy_low"]


def blinded(table: pa.Table, rows: Sequence[bool], schema: pa.Schema) -> pa.Table:
    """`table` without a score in these rows."""
    for name in ("positive", "negative"):
        values = [None if hide else v for v, hide in zip(table[name].to_pylist(), rows, strict=True)]
        column = pa.array(values, schema.field(name).type)
        table = table.set_column(table.schema.get_field_index(name), schema.field(name), column)
    return table


@pytest.mark.parametrize("undecided", [("graph", "graph-10"), ("base",), ("base", "text_only", "graph", "graph-10", "graph-20")])
def test_an_arm_without_a_decided_image_has_dashes(world: tuple, tmp_path: Path, undecided: tuple[str, ...]) -> None:
    """Undefined figures are null in the files and a dash in every table; the other arms have theirs."""
    verdicts, qualified, files, table = world
    hidden = [arm in undecided for arm in table["arm"].to_pylist()]
    blind = Verdicts(blinded(table, hidden, VERDICTS), verdicts.cases, SEEDS)
    found, rows = evaluation_figures(blind, qualified, files)
    ablation = ablation_figures(blind, qualified, files, (10, 20), ("graph",))
    arms = [Experiment(f"a-{seed}", "c" * 40, seed, "", blind, qualified, {"base": {}, "graph": {}}) for seed in (0, 1)]
    sweep = sweep_figures(sweep_samples(arms))
    read = {}
    for name, value in {"evaluation": found, "rows": rows, "ablation": ablation, "sweep": sweep}.items():
        write_json(value, tmp_path / f"{name}.json")
        read[name] = json.loads((tmp_path / f"{name}.json").read_text())
    graph, base = (read["evaluation"]["arms"][arm]["neutral"] for arm in ("graph", "base"))
    shown = {"graph": graph["positive"]["direction_accuracy"], "base": base["none"]["direction_accuracy"]}
    assert {arm: value is None for arm, value in shown.items()} == {arm: arm in undecided for arm in shown}
    epochs = {epoch: row["direction_accuracy_by_run"]["graph"] for epoch, row in read["ablation"]["epochs"].items()}
    assert {epoch: value is None for epoch, value in epochs.items()} == {epoch: f"graph-{epoch}" in undecided for epoch in epochs}
    assert (read["ablation"]["comparisons"]["20-10"]["p"] is None) == ("graph-10" in undecided)
    assert (read["sweep"]["arms"]["graph"]["direction_accuracy"] is None) == ("graph" in undecided)
    assert headline_figure(read["evaluation"]).svg
    page = [each(read["evaluation"]) for each in (tables.headline, tables.comparisons, tables.sensitivity)]
    page += [tables.ablation(read["ablation"]), tables.sweep(read["sweep"]), tables.short_headline(read["evaluation"])]
    known = {name: plain(asdict(each)) for name, each in qualified.by_class["oracle"].items()}
    page.append(tables.by_predicate(read["rows"], known, {"base": "none", "graph": "graphs"}))
    for each in page:
        assert not any(word in each.markdown() for word in ("nan", "None"))
    assert any("–" in cell for line in page[0].rows for cell in line)


def test_a_judge_that_was_shown_no_ground_truth_of_its_own_has_dashes(world: tuple, capsys: pytest.CaptureFixture[str]) -> None:
    verdicts, qualified, files, _ = world
    asked = qualified.answers.filter(pa.array([kind != "own" for kind in qualified.answers["question"].to_pylist()]))
    capsys.readouterr()
    found, _ = evaluation_figures(verdicts, QualifiedJudges.of(JUDGES, asked, STATISTICS), files)
    assert "warning: evaluation: undefined, written as null: judges.oracle.ground_truth_accuracy" in capsys.readouterr().err
    assert found["judges"]["oracle"]["ground_truth_accuracy"] is None and found["judges"]["oracle"]["classes_used"] == 0
    assert "right on – of" in tables.headline(found).caption
    assert "accuracy on ground truth –;" in tables.short_headline(found).note


def test_training_seeds_of_an_ablation_are_crossed_with_triples(world: tuple) -> None:
    """Run `other` shows the opposite of `graph` after 20 epochs: two seeds that far apart leave nothing known of a third."""
    verdicts, qualified, files, table = world
    arms, positive, negative = (table[name].to_pylist() for name in ("arm", "positive", "negative"))
    extra = [i for i, arm in enumerate(arms) if arm in ("graph-10", "graph-20")]
    opposite = [arms[i] == "graph-20" for i in extra]
    other = table.take(extra)
    for name, own, swapped in (("positive", positive, negative), ("negative", negative, positive)):
        values = [swapped[i] if turn else own[i] for i, turn in zip(extra, opposite, strict=True)]
        other = other.set_column(table.schema.get_field_index(name), VERDICTS.field(name), pa.array(values, pa.float32()))
    named = pa.array([arms[i].replace("graph", "other") for i in extra])
    other = other.set_column(table.schema.get_field_index("arm"), VERDICTS.field("arm"), named)
    both = Verdicts(pa.concat_tables([table, other]), verdicts.cases, SEEDS)
    more = {**files, "other-10": files["graph-10"], "other-20": files["graph-20"]}
    found = ablation_figures(both, qualified, more, (10, 20), ("graph", "other"))
    alone = ablation_figures(verdicts, qualified, files, (10, 20), ("graph",))["epochs"]["10"]
    same, apart = found["epochs"]["10"], found["epochs"]["20"]
    assert (same["direction_accuracy"], same["mse"]) == pytest.approx((alone["direction_accuracy"], alone["mse"]))
    assert 0.7 < same["direction_accuracy_low"] < same["direction_accuracy"] < same["direction_accuracy_high"] < 1
    assert apart["direction_accuracy"] == pytest.approx(0.5)
    assert apart["direction_accuracy_low"] < 0.01 and apart["direction_accuracy_high"] > 0.99
    compared = found["comparisons"]["20-10"]
    assert compared["difference"] == pytest.approx(0.5 - alone["direction_accuracy"]) and compared["p"] > 0.2
    assert compared["difference_low"] < -1 and compared["difference_high"] > 0, "one run lost all, the other nothing"


def test_mse_is_that_of_the_pixels(world: tuple, cases: list[EvaluationTriple]) -> None:
    _, _, files, _ = world
    file = files["graph"]
    items = file.items.to_pylist()

    def image(graph: str, seed: int) -> np.ndarray:
        row = next(
            i
            for i, item in enumerate(items)
            if (item["triple_id"], item["prompt"], item["graph"], item["seed"]) == (cases[2].triple_id, "neutral", graph, seed)
        )
        return file.read([row])[0].astype(float)

    graphs, other_seed = distances(file, cases, SEEDS, "neutral")
    by_graph = [np.mean((image("positive", s) - image("negative", s)) ** 2) for s in SEEDS]
    by_seed = [np.mean((image("positive", a) - image("positive", b)) ** 2) for a, b in ((0, 1), (0, 2), (1, 2))]
    assert graphs[2, 0] == pytest.approx(np.mean(by_graph))
    assert other_seed[2, 0] == pytest.approx(np.mean(by_seed))
    with pytest.raises(DataError, match="not all"):
        distances(files["base"], cases, SEEDS, "neutral")


def scored(positive: np.ndarray, negative: np.ndarray) -> Scored:
    """Scores of graphs of one triple by a judge that does not count."""
    return Scored(positive, negative, np.empty((*positive.shape, 0)), np.full(positive.shape, np.nan), np.isfinite(positive) * 1.0)


def test_two_by_two_of_chance_and_of_certainty() -> None:
    rng = np.random.default_rng(0)
    a, b, c, d = rng.normal(size=(4, 40_000, 1))
    found = two_by_two(scored(a, b), scored(c, d))
    for name, chance in {"text": 1 / 4, "image": 1 / 4, "group": 1 / 6, "crossed": 1 / 2}.items():
        assert found[name].mean() == pytest.approx(chance, abs=0.01)
    one, none = np.ones((5, 1)), np.zeros((5, 1))
    assert all(v.mean() == 1 for v in two_by_two(scored(one, none), scored(none, one)).values())
    assert all(v.mean() == 0 for v in two_by_two(scored(one, one), scored(one, one)).values())
    assert np.isnan(two_by_two(scored(one, none * np.nan), scored(none, one))["text"]).all()


def test_verdicts_of_other_seeds_are_refused(world: tuple, cases: list[EvaluationTriple]) -> None:
    table = world[3]
    with pytest.raises(DataError, match="other triples or seeds"):
        Verdicts(table, cases, (0, 1))
    with pytest.raises(DataError, match="other triples or seeds"):
        Verdicts(table, cases[1:], SEEDS)
    with pytest.raises(DataError, match="other triples or seeds"):
        Verdicts(table.slice(1), cases, SEEDS)


def test_calibrations_are_by_judge(world: tuple) -> None:
    found = calibrations(world[1].answers)
    assert list(found) == ["oracle", "blind"] and list(found["oracle"]) == list(found["blind"])


def test_groups_of_an_arm_trained_on_one_relation_make_up_the_whole(world: tuple, cases: list[EvaluationTriple]) -> None:
    verdicts, qualified, files, _ = world
    found = image_groups(verdicts, qualified, {"graph": {"trained_predicates": ["left of"]}, "text_only": {}})
    groups = found["graph"]
    assert found.keys() == {"graph"} and sum(each["triples"] for each in groups.values()) == len(cases)
    left = [row for row, case in enumerate(cases) if case.predicate == "left of"]
    truth = verdicts.scored(Condition("graph", "neutral", "positive"), "oracle").choices[left]
    assert groups["same_relation"]["direction_accuracy"] == pytest.approx(np.mean(truth))
    whole = evaluation_figures(verdicts, qualified, files)[0]["arms"]["graph"]["neutral"]["positive"]
    counts = [groups[name]["direction_accuracy_images"] for name in GROUPS]
    assert sum(counts) == whole["direction_accuracy_images"] and min(counts) > 0
    mean = sum(n * groups[name]["direction_accuracy"] for n, name in zip(counts, GROUPS, strict=True)) / sum(counts)
    assert mean == pytest.approx(whole["direction_accuracy"]) and groups["other_relations"]["objects_present"] == 1.0
