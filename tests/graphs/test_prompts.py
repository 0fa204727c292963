"""Which prompts and concepts are encoded."""

import pyarrow as pa

from sgpipe.attention_maps.extract import map_items
from sgpipe.datasets.tables import NEGATIVES
from sgpipe.graphs.prompts import (
    conflicting_prompts,
    curated_prompts,
    joined_concepts,
    unique_concepts,
    unique_texts,
    wrong_predicates,
)
from sgpipe.relations.predicates import PREDICATES, may_hold, phrase, relational_prompt
from tests.tiny import curated_triples

TRIPLES = curated_triples(96, "maps")


def test_every_triple_has_each_condition_once():
    table = curated_prompts(pa.concat_tables([TRIPLES, TRIPLES.slice(3, 5)]), ("relational", "neutral", "dropped", "wrong"), 0)
    assert table.num_rows == 4 * TRIPLES.num_rows
    rows = {(row["triple_id"], row["condition"]): row for row in table.to_pylist()}
    for triple in TRIPLES.to_pylist():
        names = triple["subject"], triple["object"]
        assert rows[triple["triple_id"], "relational"]["prompt"] == triple["prompt"]
        neutral, wrong = (rows[triple["triple_id"], kind] for kind in ("neutral", "wrong"))
        assert (neutral["predicate"], neutral["prompt"]) == (None, triple["neutral_prompt"])
        dropped = rows[triple["triple_id"], "dropped"]
        said = triple["prompt"].replace(f" {phrase(triple['predicate'])} ", " ", 1)
        assert (dropped["predicate"], dropped["prompt"]) == (None, said)
        assert wrong["prompt"] == relational_prompt(names[0], wrong["predicate"], names[1])
        assert phrase(wrong["predicate"]) != phrase(triple["predicate"])


def test_a_wrong_relation_does_not_hold_and_depends_on_seed_and_ids_alone():
    wrong = wrong_predicates(TRIPLES, 0)
    assert not any(may_hold(new, old) for new, old in zip(wrong, TRIPLES["predicate"].to_pylist(), strict=True))
    backwards = TRIPLES.take(pa.array(range(TRIPLES.num_rows - 1, -1, -1)))
    assert wrong_predicates(backwards, 0)[::-1] == wrong
    assert wrong_predicates(TRIPLES, 1) != wrong
    assert len(set(wrong)) > 10


def test_every_prompt_has_its_concepts_as_one_text():
    """Those of map rows, which follow the prompt, and those of a triple itself, which training reads under any prompt."""
    twice = pa.concat_tables([TRIPLES, TRIPLES.slice(3, 5)])
    prompts = curated_prompts(twice, ("neutral", "wrong"), 0)
    found = joined_concepts(twice, prompts)
    assert found == sorted(set(found))
    items = map_items(TRIPLES, prompts, ("neutral", "wrong"), [None], 0)
    wanted = {" ".join(row["concepts"]) for row in (*items.to_pylist(), *TRIPLES.to_pylist())}
    assert set(found) == wanted and any(" and " in text for text in found)


def test_conflicting_prompts_say_the_negative():
    rows = [("1-2", "swap", "cat", "above", "dog", "a photo of cat above dog on a plain background", 0)]
    table = conflicting_prompts(pa.table(list(zip(*rows, strict=True)), schema=NEGATIVES))
    assert table.to_pylist() == [{"triple_id": "1-2", "condition": "conflicting", "predicate": "above", "prompt": rows[0][-2]}]


def test_texts_are_unique_and_sorted_and_include_the_empty_prompt():
    texts = unique_texts(curated_prompts(TRIPLES, ("relational", "neutral"), 0))
    assert texts == sorted(set(texts)) and texts[0] == ""
    assert set(texts) == {"", *TRIPLES["prompt"].to_pylist(), *TRIPLES["neutral_prompt"].to_pylist()}
    concepts = unique_concepts(TRIPLES)
    assert concepts == sorted(set(concepts)) and {*map(phrase, PREDICATES), "dog", "cat"} <= set(concepts)
