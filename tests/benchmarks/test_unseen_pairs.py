"""Pairs that no triple names, each axis once, and figures of images whose content is known."""

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
