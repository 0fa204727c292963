"""Graphs of several triples: every triple is judged, and figures tell the one that g⁻ turns from those that it leaves."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from sgpipe.datasets.tables import NEGATIVES
from sgpipe.errors import DataError
from sgpipe.evaluation.calibration import questions
from sgpipe.evaluation.config import Judge as Named
from sgpipe.evaluation.config import JudgeParams, Statistics
from sgpipe.evaluation.graph_figures import graph_figures
from sgpipe.evaluation.judges import Scores
from sgpipe.evaluation.judging import Work, judge_maker
from sgpipe.evaluation.samples import CALIBRATION, FILE, SAMPLES, VERDICTS, ImageFile, Pixels, to_png, write_image_file
from sgpipe.evaluation.sampling_plan import Combination, EvaluationTriple, Triple, read_evaluation_triples
from sgpipe.evaluation.summary import QualifiedJudges, Summary
from sgpipe.evaluation.verdicts import Condition, Verdicts
from sgpipe.graphs.scene_graph import SceneGraph, parse_graph
from sgpipe.runs.shards import cut
from tests.tiny import graph_columns

SEEDS = (0, 1)
GRAPHS = ("dog, left of, cat", "cup, above, box; box, riding, bed", "car, left of, hat; hat, above, ball; ball, below, kite")
JUDGES = JudgeParams(judges={"exact": Named(kind="sgworld")}, headline="exact")
OWN = Condition("graph", "neutral", "positive")


def case(number: int, text: str) -> EvaluationTriple:
    graph: SceneGraph = parse_graph(text)
    negative = graph.negated("swap", graph.triples[0][1])
    new = number == 2
    return EvaluationTriple(str(number), number, (0.0, 0.0, 8.0, 8.0), graph, negative, "swap", {"neutral": ""}, new)


CASES = [case(number, text) for number, text in enumerate(GRAPHS)]


class Listed:
    """Believes a statement of an image if it stands in a list; finds an object twice in images of an odd number."""

    def __init__(self, true: Sequence[set[Triple]]) -> None:
        self._true = true
        self.asked: list[int] = []

    def scores(self, images: Pixels, statements: Sequence[Sequence[Triple]]) -> Scores:
        self.asked.append(len({len(several) for several in statements}))
        shown = [self._true[image[0, 0, 0]] for image in images]
        return np.array([[each in true for each in several] for true, several in zip(shown, statements, strict=True)], np.float32)

    def duplicates(self, images: Pixels, names: Sequence[Sequence[str]]) -> NDArray[np.bool_]:
        assert [tuple(each) for each in names] == [CASES[image[0, 0, 0] // 2].graph.objects for image in images]
        return images[:, 0, 0, 0] % 2 == 1


def judged(folder: Path, true: Sequence[set[Triple]]) -> pa.Table:
    """Verdicts on an image of each case and seed; image number i shows the statements `true[i]`."""
    rows = [
        (each.triple_id, "neutral", "positive", seed, "", to_png(np.full((4, 4, 3), 2 * index + seed, np.uint8)))
        for (index, each), seed in product(enumerate(CASES), SEEDS)
    ]
    table = pa.table(dict(zip(SAMPLES.names, zip(*rows, strict=True), strict=True)), schema=SAMPLES)
    write_image_file([table], folder / FILE, {"arm": "graph"})
    work, judge = Work(CASES, {"graph": ImageFile(folder)}, questions(CASES), ("exact",)), Listed(true)
    make = judge_maker(work, lambda name: judge, list, 4)
    (shard,) = cut("exact.graph", 6, 100)
    (folder / "made").mkdir()
    make(shard, folder / "made", lambda count: None)
    assert judge.asked == [1, 1], "every image of a batch is asked about equally many statements"
    return pq.read_table(folder / "made" / "scores.parquet")


def summary(table: pa.Table) -> Summary:
    rows = [
        {"judge": "exact", "triple_id": "x", "predicate": name, "question": "own", "positive": 1.0, "negative": 0.0}
        for name in ("left of", "above", "below", "riding")
    ]
    qualified = QualifiedJudges.of(JUDGES, pa.Table.from_pylist(rows, schema=CALIBRATION), Statistics(resamples=50))
    return Summary(Verdicts(table, CASES, SEEDS), qualified)


def test_what_stands_against_a_further_triple() -> None:
    """Its swap, or the likest class that cannot hold beside it; the first triple's is what g⁻ says."""
    said = CASES[1].statements
    assert said[0] == (("cup", "above", "box"), ("box", "above", "cup"))
    assert said[1][0] == ("box", "riding", "bed") and said[1][1] == ("box", "behind", "bed")
    assert CASES[2].statements[2] == (("ball", "below", "kite"), ("kite", "below", "ball"))


def test_every_triple_is_judged_and_counted(tmp_path: Path) -> None:
    graphs = [set(each.graph.named) for each in CASES]
    turned = [set(each.negative_graph.named) for each in CASES]
    true = [graphs[0], turned[0], graphs[1], turned[1], graphs[2], graphs[2] - {("hat", "above", "ball")}]
    table = judged(tmp_path, true)
    assert table.schema.names == VERDICTS.names
    assert table.num_rows == 2 * (1 + 2 + 3) and table["edge"].to_pylist() == [0, 0, 0, 1, 0, 1, 0, 1, 2, 0, 1, 2]
    found = summary(table).shares(OWN)
    assert found["right"] == pytest.approx(4 / 6) and found["turned"] == pytest.approx(2 / 6)
    assert found["edges_right"] == pytest.approx(np.mean([1, 1 / 2, 1, 2 / 3]))
    assert found["graphs_right"] == pytest.approx(2 / 4)
    assert found["others_right"] == pytest.approx(np.mean([1, 1, 1, 1 / 2]))
    assert found["edges_right_seen"] == pytest.approx(3 / 4) and found["edges_right_new"] == pytest.approx(5 / 6)
    assert found["duplicates"] == pytest.approx(1 / 2)


def test_neither_statement_is_wrong_and_graphs_of_one_triple_have_no_further_figures(tmp_path: Path) -> None:
    table = judged(tmp_path, [set()] * 6)
    found = summary(table).shares(OWN)
    assert found["right"] == found["turned"] == found["edges_right"] == found["graphs_right"] == 0
    one = [{**row, "duplicate": None} for row in table.to_pylist() if row["triple_id"] == "0"]
    alone = Verdicts(pa.Table.from_pylist(one, schema=VERDICTS), CASES[:1], SEEDS)
    found = Summary(alone, summary(table)._qualified).shares(OWN)
    assert {name for name in found if "_low" not in name and "_high" not in name} == {"right", "turned"}


def test_a_missing_verdict_of_one_triple_is_an_error(tmp_path: Path) -> None:
    table = judged(tmp_path, [set()] * 6)
    with pytest.raises(DataError, match="other triples or seeds"):
        Verdicts(table.slice(0, table.num_rows - 1), CASES, SEEDS)
    with pytest.raises(DataError, match="other triples or seeds"):
        Verdicts(table, CASES[:2], SEEDS)


def of_training(number: int, text: str, combination: Combination) -> EvaluationTriple:
    return replace(case(number, text), combination=combination, changed=0)


MET: tuple[Combination, ...] = ("other", "held_out", "seen", "other")


def grouped(
    shown: dict[Condition, np.ndarray], present: dict[Condition, np.ndarray], twice: dict[Condition, np.ndarray]
) -> dict[str, Any]:
    """`graph_figures` of 40 graphs: ten of one triple, then ten of two of each of held out, seen and with new triples.

    `shown` `[T, S, 2]`: 1 where a triple is as g⁺ has it, 0 where its contradiction is, 2 where neither.
    """
    texts = ["dog, left of, cat", *["cup, above, box; box, riding, bed"] * 3]
    cases = [of_training(10 * kind + i, texts[kind], MET[kind]) for kind in range(4) for i in range(10)]
    rows: list[dict[str, Any]] = []
    for condition, values in shown.items():
        for (index, each), seed in product(enumerate(cases), SEEDS):
            for edge in range(len(each.statements)):
                value = values[index, seed, edge]
                scores = {"positive": float(value == 1), "negative": float(value == 0)}
                if not present[condition][index, seed] and edge == len(each.statements) - 1:
                    scores = {"positive": None, "negative": None}
                key = {"arm": condition.arm, "prompt": condition.prompt, "graph": condition.graph, "judge": "exact"}
                item = {"triple_id": each.triple_id, "seed": seed, "edge": edge, "duplicate": bool(twice[condition][index, seed])}
                rows.append({**key, **item, **scores})
    answers = [
        {"judge": "exact", "triple_id": "x", "predicate": name, "question": "own", "positive": 1.0, "negative": 0.0}
        for name in ("left of", "above", "riding")
    ]
    qualified = QualifiedJudges.of(JUDGES, pa.Table.from_pylist(answers, schema=CALIBRATION), Statistics(resamples=200))
    return graph_figures(Summary(Verdicts(pa.Table.from_pylist(rows, schema=VERDICTS), cases, SEEDS), qualified))


def test_groups_of_graphs_have_figures_of_their_own() -> None:
    """Of 20 images a group: what is right, present and doubled is known by number."""
    base, negative = Condition("base", "neutral", "none"), Condition("graph", "neutral", "negative")
    empty, shuffled = Condition("graph", "neutral", "empty"), Condition("graph", "neutral", "shuffled")
    conditions = (OWN, negative, base, empty, shuffled)
    shown = {each: np.ones((40, 2, 2), int) for each in conditions}
    present, twice = ({each: np.full((40, 2), fill) for each in conditions} for fill in (True, False))
    shown[OWN][10:15, :, 1] = 0  # held out: the second triple is wrong in half of the images
    shown[OWN][20:22, :, 0] = 2  # seen: the first one in a fifth
    shown[OWN][0:1, 0] = 0  # single: one image of 20
    shown[negative][:, :, 0] = 0
    shown[negative][30:34, :, 1] = 0  # with new triples: turned throughout, but the other one does not hold in 8 of 20
    shown[negative][34:35, :, 0] = 2
    shown[base][:5, :, 0], shown[shuffled][:4, :, 0], shown[empty][:, :, 0] = 0, 0, 0
    present[OWN][30:31], twice[OWN][20:30, 0], twice[base][20:25, 0] = False, True, True
    found = grouped(shown, present, twice)
    arms, by_group = found["arms"]["graph"]["neutral"], found["arms"]["graph"]["neutral"]["positive"]
    assert {name: row["graphs"] for name, row in by_group.items()} == {
        "single": 10, "several": 20, "new_triples": 10, "combinations_held_out": 10, "combinations_seen": 10,
    }  # fmt: skip
    held, seen, new, single = (by_group[n] for n in ("combinations_held_out", "combinations_seen", "new_triples", "single"))
    assert (held["edges_right"], held["graphs_right"], held["others_right"]) == (0.75, 0.5, 0.5)
    assert (seen["edges_right"], seen["graphs_right"]) == (0.9, 0.8) and single["edges_right"] == 0.95
    assert new["objects_present"] == 0.9 and new["objects_present_difference"] == pytest.approx(-0.1)
    assert new["edges_right"] == 0.95, "a missing object counts as wrong"
    assert seen["duplicates"] == 0.5 and seen["duplicates_difference"] == pytest.approx(0.25)
    turned = arms["negative"]["new_triples"]
    assert (turned["turned"], turned["others_right"]) == (0.9, 0.6) and turned["turned_others_right"] == 0.5
    assert turned["turned_low"] < 0.9 < turned["turned_high"]
    compared = found["combinations"]["graph"]
    assert compared["graphs_right_difference"] == pytest.approx(-0.3)
    assert compared["graphs_right_difference_low"] < -0.3 < compared["graphs_right_difference_high"] < 0.2
    (row,) = found["classes"]["graph"].values()
    assert (row["triples"], row["right"], row["chance_level"], row["base_turned"]) == (10, 0.95, 0.5, 0.5)
    assert row["shuffled"] == 0.6 and row["shuffled_difference"] == pytest.approx(0.1)
    assert found["empty_less_base"]["graph"]["right_difference"] == pytest.approx(-35 / 40)
    assert "combinations" not in found["arms"] and found["arms"]["base"]["neutral"]["none"]["single"]["edges_right"] == 0.5


def test_how_training_met_the_triples_of_a_graph() -> None:
    """Each alone, both in one graph, or not at all; whichever end a triple is told from."""
    rows = [("train", "a, left of, b"), ("train", "b, on, c"), ("train", "c, on, d; d, in, e"), ("val", "b, right of, a; b, on, c"),
            ("val", "c, on, d; d, in, e"), ("val", "a, left of, b; b, on, d"), ("val", "a, left of, b")]  # fmt: skip
    triples = pa.Table.from_pylist(
        [
            {
                "triple_id": str(number), "split": split, "image_id": number, "neutral_prompt": "", "prompt": "",
                **dict.fromkeys(("crop_x", "crop_y"), 0.0), **dict.fromkeys(("crop_w", "crop_h"), 64.0),
                **graph_columns(parse_graph(text)),
            }
            for number, (split, text) in enumerate(rows)
        ]
    )  # fmt: skip
    last = {number: len(parse_graph(text).triples) - 1 for number, (_, text) in enumerate(rows)}
    against = pa.Table.from_pylist(
        [
            {"triple_id": str(n), "kind": "replace", "subject": "", "predicate": "using", "object": "", "prompt": "", "changed": at}
            for n, at in last.items()
        ],
        schema=NEGATIVES,
    )
    cases = read_evaluation_triples(triples, against)
    assert [each.combination for each in cases] == ["held_out", "seen", "other", "other"]
    assert [each.positive[1] for each in cases] == ["on", "in", "on", "left of"], "the triple that g⁻ changes"
    assert cases[0].statements[0] == (("b", "on", "c"), ("b", "using", "c")) and len(cases[0].statements) == 2
    more = read_evaluation_triples(triples, against, seen=1)
    assert more[:4] == cases and [(each.triple_id, each.combination) for each in more[4:]] == [("2", "seen")]
    assert read_evaluation_triples(triples, against, seen=None) == more
    with pytest.raises(DataError, match=r"evaluate.seen: got 2; there are 1 train graphs"):
        read_evaluation_triples(triples, against, seen=2)
