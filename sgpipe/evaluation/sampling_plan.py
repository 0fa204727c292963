"""What is sampled: for each validation triple and seed, prompts × graphs, all with the same starting noise."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sgpipe.errors import DataError
from sgpipe.evaluation.config import Graph, Prompt
from sgpipe.graphs.negatives import contradiction
from sgpipe.graphs.scene_graph import SceneGraph, combinations_of, graphs_of
from sgpipe.runs.hashing import hashed, text_ids

Triple = tuple[str, str, str]
BASE: Final = "base"
"""The arm without an adapter."""
NO_GRAPH: Final = "none"
"""Stands for the graph of an arm that is given none."""
Combination = Literal["seen", "held_out", "other"]
"""Of a graph of several triples: every two of them are in one train graph, each is in a train graph but some two are in none
together, or one of them is in none. A graph of one triple is `other`."""


@dataclass(frozen=True)
class EvaluationTriple:
    """A validation triple's graph and its negative, which swaps its roles (`swap`) or replaces its predicate (`replace`).

    The triple is number `changed` of `graph`; that of `negative_graph` stands against it. `prompts` are those of sampling, by
    condition. `new`: two classes meet at an object of the graph that do so in no train graph. `combination`: how training met the
    graph's triples.
    """

    triple_id: str
    image_id: int
    crop: tuple[float, float, float, float]
    graph: SceneGraph
    negative_graph: SceneGraph
    kind: str
    prompts: Mapping[str, str]
    new: bool = False
    changed: int = 0
    combination: Combination = "other"

    @property
    def positive(self) -> Triple:
        """The triple by names."""
        return self.graph.named[self.changed]

    @property
    def negative(self) -> Triple:
        """What the negative graph says in its place."""
        return self.negative_graph.named[self.changed]

    @property
    def predicate(self) -> str:
        """The class of the triple."""
        return self.positive[1]

    @property
    def statements(self) -> tuple[tuple[Triple, Triple], ...]:
        """Of each triple what it says and what stands against it: first that which g⁻ changes, then the others, against which
        stands their `contradiction`."""
        others = (triple for number, triple in enumerate(self.graph.named) if number != self.changed)
        return (self.positive, self.negative), *((triple, contradiction(*triple)) for triple in others)


@dataclass(frozen=True)
class SampleRequest:
    """One image to sample."""

    triple_id: str
    prompt: str
    graph: str
    seed: int
    text: str
    noise_seed: int
    scene: SceneGraph | None


def _combination(graph: SceneGraph, trained: Mapping[Triple, set[int]]) -> Combination:
    """See `Combination`; `trained` has the numbers of the train graphs of each fact."""
    known = [trained.get(fact, set()) for fact in graph.facts]
    if len(known) < 2 or not all(known):
        return "other"
    return "seen" if all(one & other for one, other in combinations(known, 2)) else "held_out"


def read_evaluation_triples(
    triples: pa.Table, negatives: pa.Table, per_class: int | None = None, seen: int | None = 0
) -> list[EvaluationTriple]:
    """Validation triples with their negatives, in the table's order; with `per_class` that many of each, by hash of their ids.

    Behind them stand `seen` train graphs of several triples, by hash, to compare held-out combinations with; None takes all.
    Raises `DataError` if there is no validation triple, if one lacks a negative, or for a class or train graphs that are too few.
    """
    chosen = triples.filter(pc.equal(triples["split"], "val"))
    if chosen.num_rows == 0:
        raise DataError("there are no val triples to evaluate; set curate.val and run `dvc repro curate`")
    against = {row["triple_id"]: row for row in negatives.to_pylist()}
    train = triples.filter(pc.equal(triples["split"], "train"))
    trained = graphs_of(train)
    met = {combination for graph in trained for combination in combinations_of(graph.triples)}
    facts: dict[Triple, set[int]] = {}
    for number, graph in enumerate(trained):
        for fact in graph.facts:
            facts.setdefault(fact, set()).add(number)

    def case(row: Mapping[str, Any]) -> EvaluationTriple:
        if row["triple_id"] not in against:
            raise DataError(f"triple {row['triple_id']} has no negative; run `dvc repro negatives`")
        false, graph = against[row["triple_id"]], SceneGraph.of_row(row)
        return EvaluationTriple(
            row["triple_id"],
            row["image_id"],
            (row["crop_x"], row["crop_y"], row["crop_w"], row["crop_h"]),
            graph,
            graph.negated(false["kind"], false["predicate"], false["changed"]),
            false["kind"],
            {"neutral": row["neutral_prompt"], "relational": row["prompt"], "conflicting": false["prompt"]},
            not combinations_of(graph.triples) <= met,
            false["changed"],
            _combination(graph, facts),
        )

    cases = [case(row) for row in chosen.to_pylist()]
    if per_class is not None:
        cases = _of_each_class(cases, per_class)
    if seen == 0:
        return cases
    again = [case(row) for row in train.filter(pc.greater(pc.list_value_length(train["triples"]), 1)).to_pylist()]
    if seen is not None and len(again) < seen:
        raise DataError(f"evaluate.seen: got {seen}; there are {len(again)} train graphs of several triples; lower it")
    return cases + again if seen is None else cases + _by_hash(again)[:seen]


def _by_hash(cases: Sequence[EvaluationTriple]) -> list[EvaluationTriple]:
    ranks = hashed(0, "evaluated", text_ids([case.triple_id for case in cases])).tolist()
    return [case for _, _, case in sorted(zip(ranks, range(len(cases)), cases, strict=True))]


def _of_each_class(cases: Sequence[EvaluationTriple], per_class: int) -> list[EvaluationTriple]:
    """The first of each class by hash, in the given order."""
    of_class: dict[str, list[str]] = {}
    for case in _by_hash(cases):
        of_class.setdefault(case.predicate, []).append(case.triple_id)
    for predicate, several in of_class.items():
        if len(several) < per_class:
            raise DataError(f"evaluate.per_class: got {per_class}; class {predicate!r} has {len(several)} val triples")
    kept = {name for several in of_class.values() for name in several[:per_class]}
    return [case for case in cases if case.triple_id in kept]


def noise_seeds(triple_ids: Sequence[str], seed: int) -> list[int]:
    """One seed below 2³¹ per triple: images of a triple share their noise, those of different triples do not."""
    return [int(value >> np.uint64(33)) for value in hashed(seed, "evaluation noise", text_ids(triple_ids))]


def others(cases: Sequence[EvaluationTriple]) -> list[int]:
    """For each case the index of another one with different names or predicate, a fixed one that looks random.

    Raises `DataError` if all cases say the same.
    """
    order = np.argsort(hashed(0, "another triple", text_ids([case.triple_id for case in cases])), kind="stable").tolist()
    found = dict.fromkeys(order, -1)
    for place, index in enumerate(order):
        own = cases[index].positive
        found[index] = next((i for i in order[place + 1 :] + order[:place] if set(cases[i].positive) != set(own)), -1)
        if found[index] < 0:
            raise DataError(f"all {len(cases)} val triples say {own}; a shuffled graph needs two different ones")
    return [found[index] for index in range(len(cases))]


def plan(
    cases: Sequence[EvaluationTriple], conditions: Mapping[Prompt, Sequence[Graph]], seeds: Sequence[int], given: str
) -> list[SampleRequest]:
    """All images of one arm. `given` is `graphs`, or `empty` or `none` for an arm whose images depend on the prompt alone.

    The order is that of prompts, graphs, seeds, triples; every image of a triple and seed has the same noise.
    """
    names = [case.triple_id for case in cases]
    noise = {seed: noise_seeds(names, seed) for seed in seeds}
    scenes: Mapping[str, Sequence[SceneGraph | None]] = {NO_GRAPH: [SceneGraph() if given == "empty" else None] * len(cases)}
    if given == "graphs":
        scenes = {
            "positive": [case.graph for case in cases],
            "negative": [case.negative_graph for case in cases],
            "empty": [SceneGraph()] * len(cases),
            "shuffled": [cases[index].graph for index in others(cases)],
        }
    return [
        SampleRequest(case.triple_id, prompt, graph, seed, case.prompts[prompt], of_noise, scene)
        for prompt, graphs in conditions.items()
        for graph in (graphs if given == "graphs" else (NO_GRAPH,))
        for seed in seeds
        for case, of_noise, scene in zip(cases, noise[seed], scenes[graph], strict=True)
    ]
