"""Graphs of several triples: every triple is judged, and figures tell the one that g⁻ turns from those that it leaves."""

from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from sgpipe.errors import DataError
from sgpipe.evaluation.calibration import questions
from sgpipe.evaluation.config import Judge as Named
from sgpipe.evaluation.config import JudgeParams, Statistics
from sgpipe.evaluation.judges import Scores
from sgpipe.evaluation.judging import Work, judge_maker
from sgpipe.evaluation.samples import CALIBRATION, FILE, SAMPLES, VERDICTS, ImageFile, Pixels, to_png, write_image_file
from sgpipe.evaluation.sampling_plan import EvaluationTriple, Triple
from sgpipe.evaluation.summary import QualifiedJudges, Summary
from sgpipe.evaluation.verdicts import Condition, Verdicts
from sgpipe.graphs.scene_graph import SceneGraph, parse_graph
from sgpipe.runs.shards import cut

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
