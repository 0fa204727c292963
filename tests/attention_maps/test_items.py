"""Which maps are made: concepts follow the prompt, and an image has one noise under all its prompts and times."""

import pyarrow as pa
import pytest

from sgpipe.attention_maps.extract import map_items
from sgpipe.errors import DataError
from sgpipe.graphs.prompts import NO_RELATION, curated_prompts, unique_concepts
from sgpipe.relations.predicates import phrase
from tests.tiny import curated_triples

TRIPLES = curated_triples(26, "maps")
PROMPTS = curated_prompts(TRIPLES, ("relational", "neutral", "wrong"), 0)


def test_every_triple_prompt_and_time_once() -> None:
    made = map_items(TRIPLES, PROMPTS, ("relational", "wrong", "neutral"), (0.5, 1.0), 3)
    keys = {(row["triple_id"], row["condition"], row["t"]) for row in made.to_pylist()}
    assert len(keys) == made.num_rows == 26 * 3 * 2
    assert made["triple_id"].to_pylist()[::6] == TRIPLES["triple_id"].to_pylist()


def test_concepts_say_what_the_prompt_says_and_are_cached() -> None:
    cached = set(unique_concepts(TRIPLES))
    for row in map_items(TRIPLES, PROMPTS, ("relational", "wrong", "neutral"), (0.5,), 0).to_pylist():
        subject, relation, object_ = row["concepts"]
        assert set(row["concepts"]) <= cached
        assert f" {relation} " in row["prompt"] and subject in row["prompt"] and object_ in row["prompt"]
        expected = {"relational": row["predicate"], "neutral": None}.get(row["condition"], row["prompt_predicate"])
        assert row["prompt_predicate"] == expected
        assert relation == (phrase(expected) if expected else NO_RELATION)
        assert (row["condition"] == "wrong") == (expected not in (row["predicate"], None))


def test_a_picture_has_one_noise_whatever_else_is_asked() -> None:
    whole = map_items(TRIPLES, PROMPTS, ("relational", "neutral"), (0.5, 1.0), 0)
    seeds = dict(zip(whole["triple_id"].to_pylist(), whole["seed"].to_pylist(), strict=True))
    assert len(set(seeds.values())) == 26
    part = map_items(TRIPLES.take(pa.array([7, 3])), PROMPTS, ("neutral",), (None,), 0)
    assert part["seed"].to_pylist() == [seeds[name] for name in part["triple_id"].to_pylist()]
    other = map_items(TRIPLES, PROMPTS, ("neutral",), (None,), 1)
    assert not set(other["seed"].to_pylist()) & set(seeds.values())


def test_a_prompt_that_was_not_cached_is_named() -> None:
    with pytest.raises(DataError, match=r"wrong prompt is not cached; add wrong to cache_prompts\.conditions"):
        map_items(TRIPLES, curated_prompts(TRIPLES, ("neutral",), 0), ("wrong",), (None,), 0)
