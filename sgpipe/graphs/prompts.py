"""The prompts that later stages ask for, and the concepts whose maps they make."""

import math
from collections.abc import Collection, Sequence
from itertools import chain
from typing import Final

import numpy as np
import pyarrow as pa

from sgpipe.datasets.tables import PROMPTS
from sgpipe.errors import DataError
from sgpipe.graphs.scene_graph import SceneGraph, graphs_of
from sgpipe.relations.predicates import PREDICATES, may_hold, nothing_against, phrase
from sgpipe.runs.hashing import fraction

NO_RELATION: Final = "and"
"""The concept in the relation's place for a prompt that names none: the word that joins the two names there."""


def wrong_predicates(triples: pa.Table, seed: int) -> list[str]:
    """For each triple a class that does not hold beside its own, each such class equally likely, drawn by hash of its ids.

    Unlike a negative's swap, the words always name another relation: what maps show under such a prompt of an image's
    relation cannot come from the words.
    """
    draws = fraction(seed, "wrong relation", triples["image_id"].to_numpy(), triples["relationship_id"].to_numpy())
    options = {name: [other for other in PREDICATES if not may_hold(other, name)] for name in PREDICATES}
    for name in set(triples["predicate"].to_pylist()):
        if not options[name]:
            raise nothing_against(name)
    return [
        options[predicate][int(draw * len(options[predicate]))]
        for predicate, draw in zip(triples["predicate"].to_pylist(), draws.tolist(), strict=True)
    ]


def words(graph: SceneGraph, condition: str = "relational", order: Sequence[int] | None = None) -> str:
    """The prompt of a graph: every triple in words (`relational`), the same without the words of the relations (`dropped`), or the
    names of all objects (`neutral`, in `order`, else as numbered). Each names every object of the graph.

    Raises `DataError` for another condition, and for a graph without objects.
    """
    if not graph.objects:
        raise DataError("a graph without objects has no prompt; name an object, or give a prompt")
    mentioned = {index for s, _, o in graph.triples for index in (s, o)}
    lone = [name for index, name in enumerate(graph.objects) if index not in mentioned]
    ends = [(graph.objects[s], phrase(p), graph.objects[o]) for s, p, o in graph.triples]
    if condition == "relational":
        parts = [" ".join(said) for said in ends] + lone
    elif condition == "dropped":
        parts = [f"{subject} {object_}" for subject, _, object_ in ends] + lone
    elif condition == "neutral":
        parts = [graph.objects[index] for index in (range(len(graph.objects)) if order is None else order)]
    else:
        raise DataError(f"a graph has no {condition!r} prompt; valid: relational, dropped, neutral")
    listed = " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))
    return f"a photo of {listed} on a plain background"


def mention_order(count: int, draw: float) -> tuple[int, ...]:
    """One of the orders of `count` objects, each equally likely for a uniform `draw` in [0, 1); two change places below 0.5."""
    left, order = list(range(count)), []
    number = min(math.factorial(count) - 1, int((1 - draw) * math.factorial(count)))
    for remaining in range(count - 1, -1, -1):
        place, number = divmod(number, math.factorial(remaining))
        order.append(left.pop(place))
    return tuple(order)


def curated_prompts(triples: pa.Table, conditions: Collection[str], seed: int) -> pa.Table:
    """Prompts of curated triples in the order of the rows, conditions one after the other; a triple given twice counts once.

    The predicate beside a prompt is that of the graph's first triple as the prompt says it, null where it says none.
    """
    first = np.unique(triples["triple_id"].to_numpy(zero_copy_only=False), return_index=True)[1]
    triples = triples.take(pa.array(np.sort(first)))
    parts: list[pa.Table] = []
    for condition in conditions:
        predicates, prompts = triples["predicate"], triples["prompt"]
        if condition == "neutral":
            predicates, prompts = pa.nulls(triples.num_rows, pa.string()), triples["neutral_prompt"]
        elif condition == "dropped":
            predicates = pa.nulls(triples.num_rows, pa.string())
            prompts = [words(graph, "dropped") for graph in graphs_of(triples)]
        elif condition == "wrong":
            predicates = wrong_predicates(triples, seed)
            told = zip(graphs_of(triples), predicates, strict=True)
            prompts = [words(graph.negated("replace", predicate)) for graph, predicate in told]
        parts.append(_rows(triples["triple_id"], condition, predicates, prompts))
    return pa.concat_tables(parts)


def conflicting_prompts(negatives: pa.Table) -> pa.Table:
    """What each triple's negative graph says in words."""
    return _rows(negatives["triple_id"], "conflicting", negatives["predicate"], negatives["prompt"])


def _rows(ids: pa.ChunkedArray, condition: str, predicates: object, prompts: object) -> pa.Table:
    columns = {"triple_id": ids, "condition": [condition] * len(ids), "predicate": predicates, "prompt": prompts}
    return pa.table(columns, schema=PROMPTS)


def unique_texts(prompts: pa.Table) -> list[str]:
    """Every prompt once, sorted, with the empty prompt (no condition at all) among them."""
    return sorted({"", *prompts["prompt"].to_pylist()})


def concepts_told(concepts: Sequence[str], predicate: str | None) -> list[str]:
    """A triple's three concepts under a prompt that says `predicate`; `NO_RELATION` stands where it says none.

    So no concept is a word that the prompt does not say.
    """
    return [concepts[0], phrase(predicate) if predicate else NO_RELATION, concepts[2]]


def joined_text(concepts: Sequence[str]) -> str:
    """Concepts as one text."""
    return " ".join(concepts)


def joined_concepts(triples: pa.Table, prompts: pa.Table) -> list[str]:
    """`joined_text` of every triple's own concepts, and as its prompts say them, each once and sorted."""
    own = dict(zip(triples["triple_id"].to_pylist(), triples["concepts"].to_pylist(), strict=True))
    told = zip(prompts["triple_id"].to_pylist(), prompts["predicate"].to_pylist(), strict=True)
    return sorted({*map(joined_text, own.values()), *(joined_text(concepts_told(own[triple], named)) for triple, named in told)})


def unique_concepts(triples: pa.Table) -> list[str]:
    """Every object of the graphs, the phrases of all classes (a negative may need any) and `NO_RELATION`, each once and sorted."""
    if triples.num_rows == 0:
        raise DataError("there are no curated triples; run `dvc repro curate`")
    named = (triples[name].combine_chunks().flatten().to_pylist() for name in ("concepts", "objects"))
    return sorted({*chain(*named), *map(phrase, PREDICATES), NO_RELATION})
