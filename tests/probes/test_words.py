"""Probes of words: their rows in prompts and in the text stream, a linear probe that finds what is linear, and its controls."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from sgpipe.backbones.truncation import ClipAndT5
from sgpipe.errors import DataError
from sgpipe.probes.config import Probes
from sgpipe.probes.data import Pairs
from sgpipe.probes.words import WordRows, gain_rows, group_figures, ridge, word_figures, word_spans, word_vectors
from sgpipe.relations.predicates import neutral_prompt, relational_prompt
from sgworld.language import t5_tokenizer
from tests.backbones.test_blockwise import Case, case  # noqa: F401
from tests.probes.world import triples

CONDITIONS = ("relational", "wrong", "neutral")


def test_words_stand_where_the_prompt_says_them() -> None:
    tokenizers = ClipAndT5(None, t5_tokenizer(), 16)
    text = relational_prompt("dog", "left of", "cat")
    spans, words = word_spans(tokenizers, text, "dog", "left of", "cat"), text.split()
    assert {name: [words[i] for i in span] for name, span in spans.items()} == {
        "subject": ["dog"], "relation": ["left", "of"], "object": ["cat"],
    }  # fmt: skip
    twice = word_spans(tokenizers, relational_prompt("dog", "left of", "dog"), "dog", "left of", "dog")
    assert twice["object"].start > twice["relation"].start > twice["subject"].start
    for ends in (("dog", "cat"), ("cat", "dog")):
        text = neutral_prompt(*ends)
        both = word_spans(tokenizers, text, ends[0], None, ends[1])
        assert [[text.split()[i] for i in both[name]] for name in ("subject", "object")] == [[ends[0]], [ends[1]]]
    text = relational_prompt("dog", "left of", "cat")
    with pytest.raises(DataError, match="its relation 'above' is not among its tokens"):
        word_spans(tokenizers, text, "dog", "above", "cat")


def test_vectors_are_means_of_the_rows_that_blocks_put_out(case: Case) -> None:  # noqa: F811
    prompts = case.condition.prompt
    seen: list[torch.Tensor | None] = []
    blocks = case.denoiser.family.by_blocks(case.denoiser.transformer).blocks
    hooks = [block.register_forward_hook(lambda block, args, made: seen.append(made[0])) for block in blocks]
    case.velocity(prompts)
    for hook in hooks:
        hook.remove()
    spans = [
        {"subject": range(0, 1), "object": range(2, 4)},
        {"subject": range(1, 2), "relation": range(2, 3), "object": range(3, 4)},
    ]
    found = word_vectors(case.denoiser, case.latents, case.t, prompts, spans, 1, case.guidance)
    wanted = [prompts.states, *(each for each in seen if each is not None)]
    assert len(found) == len(wanted)
    for own, rows in zip(found, wanted, strict=True):
        assert np.allclose(own["object"][0], rows[0, 3:5].mean(dim=0), atol=1e-6)
        assert np.allclose(own["relation"][1], rows[1, 3], atol=1e-6) and np.isnan(own["relation"][0]).all()


def test_a_linear_probe_finds_what_is_linear() -> None:
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 4, 300)
    vectors = draw.standard_normal((300, 12)) + 2 * np.eye(12)[labels]
    train, val, test = np.split(np.arange(300), [180, 240])
    assert (ridge(vectors, labels, train, val, test) == labels[test]).mean() > 0.7
    mixed = draw.permutation(labels)
    assert (ridge(vectors, mixed, train, val, test) == mixed[test]).mean() < 0.45


def test_figures_tell_a_word_that_holds_the_relation_from_one_that_does_not() -> None:
    """The object's vector holds the prompt's relation after the block, the subject's holds nothing, and names hold nothing."""
    table = triples(24)
    pairs = Pairs(table)
    classes = sorted(set(table["predicate"].to_pylist()))
    said = {name: classes[(i + 1) % len(classes)] for i, name in enumerate(classes)}
    items = pa.Table.from_pylist([
        {**row, "condition": of, "prompt_predicate": {"relational": row["predicate"], "wrong": said[row["predicate"]]}.get(of)}
        for row in table.select(["triple_id", "predicate"]).to_pylist() for of in CONDITIONS
    ], pa.schema([(name, pa.string()) for name in ("triple_id", "predicate", "condition", "prompt_predicate")])
    ).append_column("prompt", pa.array([""] * (3 * table.num_rows)))  # fmt: skip
    draw = np.random.default_rng(0)
    told = np.array([classes.index(name) if name else -1 for name in items["prompt_predicate"].to_pylist()])
    holds = 3 * np.eye(len(classes) + 1)[told] + 0.1 * draw.standard_normal((len(told), len(classes) + 1))
    nothing = draw.standard_normal(holds.shape)
    relation = np.where((told < 0)[:, None], np.nan, holds)
    vectors = [{"subject": nothing, "relation": relation, "object": each} for each in (nothing, holds)]
    names = {name: torch.from_numpy(draw.standard_normal(6)) for pair in pairs.names for name in pair}
    config = Probes({"mlp": 1}, seeds=2, shuffled_seeds=1, folds=4, resamples=100)
    found = word_figures(WordRows.of(vectors, items, pairs), pairs, names, config)
    rows = {(row["word"], row["block"]): row for row in found["rows"]}
    assert rows["object", 0]["accuracy"] == 1.0 and rows["object", -1]["accuracy"] < 0.6
    assert rows["object", 0]["selectivity_low"] > 0.2 > rows["subject", 0]["selectivity_low"]
    prompts = rows["object", 0]["prompts"]
    assert (prompts["true"], prompts["wrong"], prompts["wrong_towards_word"]) == (1.0, 0.0, 1.0)
    assert rows["relation", 0]["prompts"]["neutral"] is None and rows["subject", 0]["prompts"]["neutral"] is not None
    groups = group_figures(found["gains"], found["groups"], {"all": [0]}, config)
    own = next(each for each in groups if each["word"] == "object")
    assert own["selectivity"] == pytest.approx(rows["object", 0]["selectivity"])
    table = gain_rows(found["gains"], found["groups"])
    assert table.num_rows == sum(gain.size for gain in found["gains"].values())
