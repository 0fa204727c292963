"""Which maps are to be made: one row per picture, prompt and time."""

from collections.abc import Collection, Mapping

import numpy as np
import pyarrow as pa

from sgpipe.errors import DataError
from sgpipe.scene_graphs.hashing import hashed
from sgpipe.scene_graphs.predicates import phrase
from sgpipe.scene_graphs.prompts import NO_RELATION
from sgpipe.scene_graphs.tables import MAP_ITEMS

ITEMS = pa.schema(
    [
        *MAP_ITEMS,
        ("prompt", pa.string()),
        ("concepts", pa.list_(pa.string(), 3)),
        ("seed", pa.int64()),
    ]
)


def map_items(
    triples: pa.Table,
    prompts: pa.Table,
    conditions: Collection[str],
    times: Collection[float | None],
    seed: int,
) -> pa.Table:
    """Rows `ITEMS` for all triples × conditions × times, in this order.

    The three concepts follow the prompt: the relation is the one it names, and `NO_RELATION` in its place where it names none, so
    that no map is made with a word that its prompt does not say. The seed of a picture's noise is a hash of its ids and the
    same in all its rows. Raises `DataError` for a prompt that was not cached.
    """
    asked: Mapping[tuple[str, str], tuple[str | None, str]] = {
        (triple, condition): (predicate, prompt)
        for triple, condition, predicate, prompt in zip(
            *(prompts[name].to_pylist() for name in ("triple_id", "condition", "predicate", "prompt")),
            strict=True,
        )
    }
    seeds = hashed(seed, "maps", *(triples[name].to_numpy() for name in ("image_id", "relationship_id")))
    rows: list[dict[str, object]] = []
    columns = (triples[name].to_pylist() for name in ("triple_id", "predicate", "concepts"))
    for triple, predicate, said, own in zip(*columns, (seeds >> np.uint64(1)).tolist(), strict=True):
        for condition in conditions:
            if (triple, condition) not in asked:
                raise DataError(
                    f"triple {triple}: its {condition} prompt is not cached; add {condition} to cache_prompts.conditions"
                )
            named, prompt = asked[triple, condition]
            concepts = [said[0], phrase(named) if named else NO_RELATION, said[2]]
            rows += [
                {
                    "triple_id": triple, "predicate": predicate, "condition": condition, "prompt_predicate": named,
                    "t": t, "prompt": prompt, "concepts": concepts, "seed": own,
                }
                for t in times
            ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=ITEMS)
