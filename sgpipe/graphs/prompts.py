"""The prompts that later stages ask for, and the concepts whose maps they make."""

from collections.abc import Collection
from typing import Final

import numpy as np
import pyarrow as pa

from sgpipe.datasets.tables import PROMPTS
from sgpipe.errors import DataError
from sgpipe.graphs.negatives import may_hold
from sgpipe.relations.predicates import PREDICATES, phrase, relational_prompt
from sgpipe.runs.hashing import fraction

NO_RELATION: Final = "and"
"""The concept in the relation's place for a prompt that names none: the word that joins the two names there."""


def wrong_predicates(triples: pa.Table, seed: int) -> list[str]:
    """For each triple a class that does not hold beside its own, each such class equally likely, drawn by hash of its ids.

    Unlike a negative's swap, the words always name another relation: what maps show under such a prompt of a picture's
    relation cannot come from the words.
    """
    draws = fraction(
        seed, "wrong relation", triples["image_id"].to_numpy(), triples["relationship_id"].to_numpy()
    )
    options = {name: [other for other in PREDICATES if not may_hold(other, name)] for name in PREDICATES}
    return [
        options[predicate][int(draw * len(options[predicate]))]
        for predicate, draw in zip(triples["predicate"].to_pylist(), draws.tolist(), strict=True)
    ]


def curated_prompts(triples: pa.Table, conditions: Collection[str], seed: int) -> pa.Table:
    """Prompts of curated triples in the order of the rows, conditions one after the other; a triple given twice counts once."""
    first = np.unique(triples["triple_id"].to_numpy(zero_copy_only=False), return_index=True)[1]
    triples = triples.take(pa.array(np.sort(first)))
    parts: list[pa.Table] = []
    for condition in conditions:
        predicates, prompts = triples["predicate"], triples["prompt"]
        if condition == "neutral":
            predicates, prompts = pa.nulls(triples.num_rows, pa.string()), triples["neutral_prompt"]
        elif condition == "dropped":
            predicates = pa.nulls(triples.num_rows, pa.string())
            pairs = zip(triples["subject"].to_pylist(), triples["object"].to_pylist(), strict=True)
            prompts = [dropped_prompt(*names) for names in pairs]
        elif condition == "wrong":
            predicates = wrong_predicates(triples, seed)
            names = zip(
                triples["subject"].to_pylist(), predicates, triples["object"].to_pylist(), strict=True
            )
            prompts = [relational_prompt(*said) for said in names]
        parts.append(_rows(triples["triple_id"], condition, predicates, prompts))
    return pa.concat_tables(parts)


def dropped_prompt(subject: str, object_: str) -> str:
    """The relational prompt without the words of its relation: the names stay in their places."""
    return f"a photo of {subject} {object_} on a plain background"


def conflicting_prompts(negatives: pa.Table) -> pa.Table:
    """The relational prompt of each triple's negative graph."""
    columns = (negatives[name].to_pylist() for name in ("subject", "predicate", "object"))
    prompts = [relational_prompt(*said) for said in zip(*columns, strict=True)]
    return _rows(negatives["triple_id"], "conflicting", negatives["predicate"], prompts)


def _rows(ids: pa.ChunkedArray, condition: str, predicates: object, prompts: object) -> pa.Table:
    columns = {
        "triple_id": ids,
        "condition": [condition] * len(ids),
        "predicate": predicates,
        "prompt": prompts,
    }
    return pa.table(columns, schema=PROMPTS)


def unique_texts(prompts: pa.Table) -> list[str]:
    """Every prompt once, sorted, with the empty prompt (no condition at all) among them."""
    return sorted({"", *prompts["prompt"].to_pylist()})


def unique_concepts(triples: pa.Table) -> list[str]:
    """Every subject and object, the phrases of all classes (a negative may need any) and `NO_RELATION`, each once and sorted."""
    if triples.num_rows == 0:
        raise DataError("there are no curated triples; run `dvc repro curate`")
    said = triples["concepts"].combine_chunks().flatten().to_pylist()
    return sorted({*said, *map(phrase, PREDICATES), NO_RELATION})
