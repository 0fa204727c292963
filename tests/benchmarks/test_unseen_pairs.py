"""Pairs that no triple names, each axis once, and figures of images whose content is known."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest
import torch

from benchmarks.unseen_pairs import figures, left_as_it_was, unseen
from sgpipe.datasets.tables import RELATIONS, TRIPLES
from sgpipe.errors import DataError
from sgpipe.evaluation.config import Judge as Named
from sgpipe.evaluation.config import Statistics
from sgpipe.evaluation.judge_factory import open_judge
from sgpipe.evaluation.sampling_plan import Triple
from sgworld.scenes import pair_scene, render

SAID = [
    ("cat", "left of", "dog"),
    ("dog", "right of", "cat"),
    ("dog", "above", "cat"),
    ("tree", "left of", "car"),
    ("tree", "on", "bench"),
    ("bus", "in front of", "bench"),
    ("bus", "right of", "bus"),
    ("cup", "below", "table"),
]


def table(schema: pa.Schema, said: list[tuple[str, str, str]]) -> pa.Table:
    """Rows that say this, everything else null or counted."""
    columns = dict(zip(("subject", "predicate", "object"), map(list, zip(*said, strict=True)), strict=True))
    columns |= {"image_id": list(range(len(said))), "relationship_id": list(range(100, 100 + len(said)))}
    return pa.table(
        {
            field.name: pa.array(columns[field.name], field.type) if field.name in columns else pa.nulls(len(said), field.type)
            for field in schema
        },
        schema=schema,
    )


CHOSEN = table(TRIPLES, [("car", "left of", "tree"), ("hat", "right of", "bed"), ("hat", "above", "bed"), ("a", "below", "b")])


def test_a_pair_counts_once_per_axis_and_only_if_no_triple_names_it() -> None:
    cases = unseen(table(RELATIONS, SAID), CHOSEN)
    assert {case.positive for case in cases if "cup" in case.positive} == {("cup", "below", "table")}
    pairs = [case for case in cases if set(case.positive) >= {"cat", "dog"}]
    assert len(pairs) == 2 and {case.predicate for case in pairs} & {"left of", "right of"}
    assert len(cases) == 3, "named by a triple, not directional, of a class no triple has, or of one name: left out"
    for case in cases:
        assert case.negative == case.positive[::-1] and case.kind == "swap"
        assert case.predicate not in case.prompts["neutral"] and case.positive[0] in case.prompts["neutral"]
    assert unseen(table(RELATIONS, SAID), CHOSEN, 2) == cases[:2]
    with pytest.raises(DataError, match="every pair of names"):
        unseen(table(RELATIONS, SAID[3:4]), CHOSEN)


def test_classes_without_an_inverse_have_cases_and_no_direction() -> None:
    """Told as `cat touching dog`, seen as that or as `dog above cat`; roles are of the class that is seen."""
    said = [("cat", "touching", "dog"), ("cat", "above", "dog"), ("dog", "on", "cat")]
    cases = unseen(table(RELATIONS, said), table(TRIPLES, [("hat", "touching", "bed"), ("a", "on", "b"), ("a", "above", "b")]))
    assert {(case.predicate, case.kind) for case in cases} == {("touching", "replace"), ("on", "replace"), ("above", "swap")}

    class Told:
        """Believes statements about the image of a case by its number."""

        def scores(self, images: np.ndarray, statements: Sequence[Sequence[Triple]]) -> np.ndarray:
            true = [said[image[0, 0, 0]] for image in images]
            symmetric = [{t, (t[2], t[1], t[0])} if t[1] == "touching" else {t} for t in true]
            return np.array([[s in t for s in each] for t, each in zip(symmetric, statements, strict=True)], np.float32)

    shown = [said.index(case.positive) for case in cases]
    found = figures(np.stack([np.full((4, 4, 3), number, np.uint8) for number in shown]), cases, Told(), Statistics())
    assert found["direction_accuracy_images"] == 1, "of the one class whose negative swaps the roles"
    assert {name for name, share in found["classes"].items() if share} == {"touching", "on", "above"}
    assert found["first_is_subject"] == 0.5, "cat above dog, dog on cat; touching has no subject"


def test_pairs_of_a_graphs_other_triples_are_seen() -> None:
    chosen = CHOSEN.to_pylist()
    chosen[0] |= {"objects": ["car", "tree", "cat", "dog"], "triples": [{"subject": 2, "predicate": "on", "object": 3}]}
    cases = unseen(table(RELATIONS, SAID), pa.Table.from_pylist(chosen, schema=TRIPLES))
    assert not any({"cat", "dog"} == {*case.positive[::2]} for case in cases) and cases


def test_figures_of_drawn_pictures() -> None:
    cases = unseen(table(RELATIONS, SAID), CHOSEN)
    rng = np.random.default_rng(0)
    judge = open_judge("exact", Named("sgworld"), torch.device("cpu"))
    told = [case.positive for case in cases[:2]] + [cases[2].negative]
    images = np.stack([render(pair_scene(rng, *each)) for each in told])
    found = figures(images, cases, judge, Statistics())
    assert (found["direction_accuracy"], found["direction_accuracy_images"]) == (pytest.approx(2 / 3), 3)
    assert found["objects_present"] == 1.0
    assert sum(found["classes"].values()) == pytest.approx(1) and found["classes"]["above"] + found["classes"]["below"] > 0
    twice = figures(np.concatenate([images, images]), cases, judge, Statistics())
    assert (twice["direction_accuracy"], twice["direction_accuracy_images"]) == (found["direction_accuracy"], 6)
    assert twice["classes"] == found["classes"]
    images[0] = 255
    other = figures(images, cases, judge, Statistics())
    assert other["objects_present"] == sum(other["classes"].values()) == pytest.approx(2 / 3)
    moved = left_as_it_was(found, other)
    assert [moved["largest_class_difference"], moved["objects_present_difference"]] == pytest.approx([1 / 3, 1 / 3])
