"""What is compared: two runs of a triple from the same noise that differ in what they are told of its relation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sgpipe.arms.conditioning import name_table
from sgpipe.arms.generation import GraphGenerator
from sgpipe.backbones.base import TextCondition
from sgpipe.backbones.truncation import Tokenizers
from sgpipe.errors import DataError, ParamsError
from sgpipe.evaluation.sampling_plan import EvaluationTriple, noise_seeds
from sgpipe.graph_encoder.open_vocabulary import texts_of
from sgpipe.graphs.prompts import words
from sgpipe.graphs.scene_graph import SceneGraph
from sgpipe.localisation.config import Rows
from sgpipe.relations.predicates import INVERSE, phrase
from sgpipe.runs.hashing import hashed, text_ids

RUNS: Final = ("positive", "negative", "other")
"""Told the relation, told its inverse, and what another triple of the same relation is told."""


@dataclass(frozen=True)
class Item:
    """One triple with one noise; `other` is a triple of the same class."""

    case: EvaluationTriple
    other: EvaluationTriple
    seed: int
    noise_seed: int


def items_of(cases: Sequence[EvaluationTriple], pairs: int | None, seeds: Sequence[int]) -> list[Item]:
    """Items of the triples whose negative swaps the roles: all, or `pairs`, of each class in turn by hash of their ids; every
    triple's noises stand together, in the order of `seeds`.

    Raises `DataError` where there are fewer, or a class has a single triple.
    """
    order = hashed(0, "localised", text_ids([case.triple_id for case in cases])).argsort(kind="stable").tolist()
    by_class: dict[str, list[EvaluationTriple]] = {}
    for index in order:
        if cases[index].kind == "swap":
            by_class.setdefault(cases[index].predicate, []).append(cases[index])
    for predicate, several in by_class.items():
        if len(several) < 2:
            raise DataError(
                f"class {predicate!r} has one val triple, and a control needs another one of the same class; raise curate.val, or "
                "take the class out of curate.predicates"
            )
    ranked = [(place, predicate, case) for predicate, several in by_class.items() for place, case in enumerate(several)]
    chosen = sorted(ranked, key=lambda each: each[:2])
    if len(chosen) < (pairs or 1):
        raise DataError(
            f"localise.pairs: got {pairs or 'null'}; there are {len(chosen)} val triples whose negative swaps the roles"
        )
    found = []
    noise = {
        seed: dict(zip((c.triple_id for c in cases), noise_seeds([c.triple_id for c in cases], seed), strict=True))
        for seed in seeds
    }
    for place, predicate, case in chosen[:pairs]:
        several = by_class[predicate]
        other = several[(place + 1) % len(several)]
        found += [Item(case, other, seed, noise[seed][case.triple_id]) for seed in seeds]
    return found


def items_of_graph(graph: SceneGraph, prompt: str | None, seeds: Sequence[int]) -> list[Item]:
    """One triple, the first of a graph, with several noises, which are those of these seeds in `sgpipe generate`; `prompt` is what
    is said beside the graph, None its names alone. The control is the triple itself.

    Raises `ParamsError` for a graph without a triple, or whose first one says the same with its names exchanged.
    """
    if not graph.triples:
        raise ParamsError('--graph: got a graph without a triple; write "subject, predicate, object"')
    predicate = graph.named[0][1]
    if predicate not in INVERSE:
        valid = ", ".join(INVERSE)
        raise ParamsError(f"--graph: got the relation {predicate!r}, which has no inverse to compare it with; valid: {valid}")
    negative = graph.negated("swap", predicate)
    prompts = {"neutral": prompt or words(graph, "neutral"), "relational": words(graph), "conflicting": words(negative)}
    case = EvaluationTriple("", 0, (0.0, 0.0, 0.0, 0.0), graph, negative, "swap", prompts)
    return [Item(case, case, seed, seed) for seed in seeds]


@dataclass(frozen=True)
class Told:
    """What one run of one item is told."""

    text: str
    graph: SceneGraph | None
    words: Mapping[Rows, str]
    """Subject, relation and object as the text says them."""


def told(item: Item, run: str, by_graph: bool) -> Told:
    """By a graph under the neutral prompt, or in words alone: the relation, and the class that says the inverse of the same names.

    Words in one place so stand against each other (a prompt of swapped names would move them).
    """
    case = item.other if run == "other" else item.case
    subject, predicate, object_ = case.positive
    if by_graph:
        graph = case.negative_graph if run == "negative" else case.graph
        return Told(case.prompts["neutral"], graph, {"subject": subject, "object": object_})
    said = INVERSE[predicate] if run == "negative" else predicate
    graph = case.graph.negated("replace", said, case.changed)
    return Told(words(graph), None, {"subject": subject, "relation": phrase(said), "object": object_})


def texts_of_runs(items: Sequence[Item]) -> tuple[list[str], list[SceneGraph | None]]:
    """Every prompt and graph that runs of the items may be told, whatever the adapter."""
    every = [told(item, run, by_graph) for by_graph in (True, False) for run in RUNS for item in items]
    return [one.text for one in every], [one.graph for one in every]


@dataclass(frozen=True)
class Conditions:
    """What R runs of P items are told, run by run, so that run r of item p is sample r·P + p; `plain` where an adapter does not
    work."""

    told: TextCondition
    plain: TextCondition
    texts: Sequence[str]
    """What each sample is told in words."""
    word_rows: Mapping[Rows, list[range | None]]
    """Rows of `told` that hold a word, by sample; None where its text does not say it."""

    def places(self, rows: Rows) -> list[list[int]]:
        """Rows of the condition of each sample. Raises `ParamsError` for a word that a prompt does not say, or graph tokens
        without any."""
        before, count = self.told.prepended, self.told.states.shape[1]
        if rows == "graph" and not before:
            raise ParamsError("localise.rows: got graph; the runs have no graph tokens: take it out, or name an adapter with them")
        if rows == "pooled" and self.told.pooled is None:
            raise ParamsError("localise.rows: got pooled; this family has no pooled vector: take it out")
        whole = {
            "pooled": range(0),
            "text": range(count),
            "prompt": range(before, count),
            "graph": range(before),
            "image": range(0),
        }
        if rows in whole:
            return [list(whole[rows])] * len(self.told.states)
        found = [list(span) for span in self.word_rows.get(rows, []) if span is not None]
        if len(found) < len(self.told.states):
            raise ParamsError(
                f"localise.rows: got {rows}; not every prompt says it (a neutral prompt names no relation, and a long one is cut)"
            )
        return found


def conditions(generator: GraphGenerator, tokenizers: Tokenizers, items: Sequence[Item], word_tokens: int) -> Conditions:
    """Of all runs of the items; `word_tokens` are the rows of the encoder of names, a condition's last."""
    by_graph = generator.adapter is not None and generator.adapter.mode != "text"
    each = [told(item, run, by_graph) for run in RUNS for item in items]
    texts = [one.text for one in each]
    plain = condition = generator.texts.prompts(texts).to(generator.denoiser.device)
    if generator.adapter is not None:
        graphs = [one.graph or SceneGraph() for one in each]
        named = ["", *texts_of(graphs)]
        rows = generator.texts.concepts(named)
        own = pad_sequence([torch.ones(len(row), dtype=torch.bool) for row in rows], batch_first=True)
        table = name_table(pad_sequence(rows, batch_first=True), own, named)
        with torch.no_grad():
            condition = generator.adapter.condition(graphs, texts, plain, table)
    start = condition.prepended + max(plain.states.shape[1] - word_tokens, 0)
    spans: dict[Rows, list[range | None]] = {"subject": [], "relation": [], "object": []}
    for one in each:
        mentions = tokenizers.mentions(one.text, set(one.words.values()))
        for kind, found in spans.items():
            at = next(iter(mentions.get(one.words.get(kind, ""), [])), None)
            inside = at is not None and start + at.stop <= condition.states.shape[1]
            found.append(range(start + at.start, start + at.stop) if at is not None and inside else None)
    return Conditions(condition, plain, texts, spans)


def take(condition: TextCondition, samples: Tensor, pooled_of: Tensor | None = None) -> TextCondition:
    """The condition of the samples at these places `[B]`, with the pooled vectors of `pooled_of` `[B]`, by default their own."""
    pooled = None if condition.pooled is None else condition.pooled[samples if pooled_of is None else pooled_of]
    mask = None if condition.mask is None else condition.mask[samples]
    return replace(condition, states=condition.states[samples], pooled=pooled, mask=mask)
