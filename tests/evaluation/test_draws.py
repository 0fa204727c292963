"""What is sampled: the plan of each arm, noise, and images that come back to the bit."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from benchmarks.evaluation import some_cases
from sgpipe.datasets.tables import NEGATIVES
from sgpipe.errors import DataError
from sgpipe.evaluation.samples import FILE, SAMPLES, ImageFile, from_png, to_png, write_image_file
from sgpipe.evaluation.sampling_plan import EvaluationTriple, noise_seeds, others, plan, read_evaluation_triples
from sgpipe.graphs.scene_graph import SceneGraph
from sgpipe.relations.predicates import neutral_prompt, relational_prompt
from tests.tiny import graph_columns

DRAW = {"neutral": ("positive", "negative", "empty", "shuffled"), "relational": ("positive",), "conflicting": ("positive",)}


def test_one_noise_per_triple_and_seed(cases: list[EvaluationTriple]) -> None:
    """All prompts, graphs and arms of a triple start from the same noise; other triples and seeds from others."""
    planned = [each for given in ("graphs", "empty", "none") for each in plan(cases, DRAW, (0, 1, 2), given)]
    by_picture: dict[tuple[str, int], set[int]] = {}
    for each in planned:
        by_picture.setdefault((each.triple_id, each.seed), set()).add(each.noise_seed)
    assert all(len(seeds) == 1 for seeds in by_picture.values())
    assert len({seed for seeds in by_picture.values() for seed in seeds}) == len(cases) * 3
    assert noise_seeds([cases[3].triple_id], 1) == [noise_seeds([c.triple_id for c in cases], 1)[3]]


def test_each_arm_is_given_what_it_is_to_be_given(cases: list[EvaluationTriple]) -> None:
    graphs = plan(cases, DRAW, (0,), "graphs")
    assert len(graphs) == 6 * len(cases)
    by = {(each.prompt, each.graph, each.triple_id): each for each in graphs}
    case = cases[0]
    assert by["neutral", "positive", case.triple_id].scene == SceneGraph.of(*case.positive)
    assert by["neutral", "negative", case.triple_id].scene == SceneGraph.of(*case.negative)
    assert by["neutral", "empty", case.triple_id].scene == SceneGraph()
    shuffled = by["neutral", "shuffled", case.triple_id].scene
    assert shuffled is not None and {*shuffled.objects, shuffled.triples[0][1]} != set(case.positive)
    assert by["neutral", "positive", case.triple_id].text == neutral_prompt("dog", "cat")
    assert by["relational", "positive", case.triple_id].text == relational_prompt(*case.positive)
    conflict = by["conflicting", "positive", case.triple_id]
    assert conflict.text == relational_prompt(*case.negative) and conflict.scene == SceneGraph.of(*case.positive)
    for given, scene in (("none", None), ("empty", SceneGraph())):
        alone = plan(cases, DRAW, (0, 1), given)
        assert len(alone) == 3 * 2 * len(cases)
        assert {each.graph for each in alone} == {"none"} and all(each.scene == scene for each in alone)


def test_another_triple_is_another(cases: list[EvaluationTriple]) -> None:
    found = others(cases)
    assert all(set(cases[i].positive) != set(cases[j].positive) for i, j in enumerate(found))
    with pytest.raises(DataError, match="all 2 val triples"):
        others([cases[0], cases[0]])


def test_cases_are_the_val_triples(cases: list[EvaluationTriple]) -> None:
    rows = [
        {
            "triple_id": case.triple_id,
            "split": "val" if i else "train",
            "image_id": i,
            "subject": case.positive[0],
            "predicate": case.predicate,
            "object": case.positive[2],
            "neutral_prompt": case.prompts["neutral"],
            "prompt": case.prompts["relational"],
            **graph_columns(case.graph),
            **dict.fromkeys(("crop_x", "crop_y"), 0.0),
            **dict.fromkeys(("crop_w", "crop_h"), 64.0),
        }
        for i, case in enumerate(cases)
    ]
    values = [(c.triple_id, c.kind, *c.negative, c.prompts["conflicting"], c.changed) for c in cases]
    negatives = pa.table(dict(zip(NEGATIVES.names, zip(*values, strict=True), strict=True)), schema=NEGATIVES)
    triples = pa.Table.from_pylist(rows)
    assert read_evaluation_triples(triples, negatives) == cases[1:]
    assert some_cases(triples, negatives, len(cases)) == [*cases[1:], cases[0]]
    with pytest.raises(DataError, match="--triples: got 1000"):
        some_cases(triples, negatives, 1000)
    few = read_evaluation_triples(triples, negatives, per_class=2)
    assert len(few) == 10 and [c for c in cases if c in few] == few
    with pytest.raises(DataError, match=r"evaluate\.per_class: got 4; class 'left of' has 3"):
        read_evaluation_triples(triples, negatives, per_class=4)
    with pytest.raises(DataError, match="has no negative"):
        read_evaluation_triples(triples, negatives.slice(0, 5))
    with pytest.raises(DataError, match="no val triples"):
        read_evaluation_triples(triples.slice(0, 1), negatives)


def test_pictures_come_back_to_the_bit(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (7, 8, 12, 3)).astype(np.uint8)
    assert np.array_equal(from_png(to_png(pixels[0])), pixels[0])
    rows = [("t", "neutral", "none", i, "words", to_png(each)) for i, each in enumerate(pixels)]
    table = pa.table(dict(zip(SAMPLES.names, zip(*rows, strict=True), strict=True)), schema=SAMPLES)
    folder = tmp_path / "arm"
    assert write_image_file([table.slice(0, 4), table.slice(4)], folder / FILE, {"arm": "base"}) == 7
    file = ImageFile(folder)
    assert file.arm == "base" and len(file) == 7
    assert np.array_equal(file.read(range(7)), pixels)
    assert np.array_equal(file.read([6, 0, 3]), pixels[[6, 0, 3]])
    written = (folder / FILE).read_bytes()
    write_image_file([table.slice(0, 4), table.slice(4)], folder / FILE, {"arm": "base"})
    assert (folder / FILE).read_bytes() == written
    (folder / FILE).write_bytes(written[:100])
    with pytest.raises(DataError, match="no file of images"):
        ImageFile(folder)
    with pytest.raises(DataError, match="no such file"):
        ImageFile(tmp_path)
