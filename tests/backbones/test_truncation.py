"""What the encoders get of a text is compared with its whole; what they lose is counted, and told apart by what it is."""

from pathlib import Path

import pytest
from transformers import CLIPTokenizer, T5Tokenizer

from sgpipe.backbones.families import open_tokenizers
from sgpipe.backbones.truncation import TEMPLATE_END, ClipAndT5, check_names_kept, describe, tokenized, warn
from sgpipe.errors import DataError
from sgpipe.graphs.prompts import words
from sgpipe.graphs.scene_graph import SceneGraph
from sgpipe.relations.predicates import PREDICATES, neutral_prompt, relational_prompt
from sgworld.language import clip_tokenizer, t5_tokenizer
from tests.tiny import backbone_of

CUT = relational_prompt("fire hydrant", "in front of", "traffic light")
WHOLE = relational_prompt("dog", "left of", "cat")


@pytest.fixture(scope="module")
def tokenizers() -> ClipAndT5:
    """As the embedded checkpoint's, 16 tokens each; "dog" and "cat" are tokens, "hydrant" is spelled."""
    return ClipAndT5(clip_tokenizer([WHOLE]), t5_tokenizer(), 16)


def test_every_template_ends_with_what_may_be_lost() -> None:
    said = [relational_prompt("a", predicate, "b") for predicate in PREDICATES]
    assert all(
        each.endswith(TEMPLATE_END) for each in [*said, neutral_prompt("a", "b"), words(SceneGraph.of("a", "on", "b"), "dropped")]
    )


def test_a_relation_that_no_encoder_gets_is_told_from_the_end_of_the_template(tokenizers: ClipAndT5) -> None:
    t5 = tokenizers.names([CUT, WHOLE, ""])
    assert [(each.truncated, each.loses_names) for each in t5] == [(True, True), (False, False), (False, False)]
    kept = CUT[: t5[0].kept]
    assert kept == "a photo of fire hydran" and t5[0].limit == 16
    short = tokenized(tokenizers.t5, "T5", [WHOLE], 9)
    assert (short[0].truncated, short[0].loses_names) == (True, False)
    assert WHOLE[: short[0].kept] == "a photo of dog left of cat on"
    shorter = tokenized(tokenizers.t5, "T5", [WHOLE], 7)
    assert shorter[0].loses_names and WHOLE[: shorter[0].kept] == "a photo of dog left of"
    free = tokenized(tokenizers.t5, "T5", ["dog on cat on a plain table"], 5)
    assert free[0].loses_names


@pytest.mark.parametrize("limit", [5, 8, 16, 60])
def test_kept_and_tokens_are_those_that_the_encoder_gets(tokenizers: ClipAndT5, limit: int) -> None:
    """The text up to `kept` alone gives the same ids as the truncated whole."""
    for tokenizer in (tokenizers.t5, tokenizers.clip):
        (found,) = tokenized(tokenizer, "any", [CUT], limit)
        given = tokenizer(CUT, max_length=limit, truncation=True).input_ids
        assert found.truncated == (len(tokenizer(CUT).input_ids) > limit)
        whole = tokenizer(CUT).input_ids
        assert given[:-1] == whole[: len(given) - 1] and min(found.tokens, limit) == len(given)
        assert found.kept == len(CUT) or found.truncated


def test_clip_is_counted_too_and_the_knob_is_named(tokenizers: ClipAndT5, capsys: pytest.CaptureFixture) -> None:
    wide = ClipAndT5(tokenizers.clip, tokenizers.t5, 64)
    said = describe(wide.prompts([CUT, WHOLE]))
    assert said is not None and said.startswith("1 texts are truncated, 1 of them in a name or relation: CLIP takes 16 of")
    assert "max_sequence_length" not in said
    needed = len(tokenizers.t5(CUT).input_ids)
    both = describe(tokenizers.prompts([CUT, WHOLE]))
    assert both is not None and f"raise backbone.max_sequence_length to {needed} and shorten the text" in both
    assert "loses 't in front of traffic light on a plain background'" in both
    enough = ClipAndT5(tokenizers.clip, tokenizers.t5, needed)
    assert describe(enough.names([CUT])) is None and describe([]) is None
    warn(enough.names([CUT]), "stage")
    assert capsys.readouterr().err == ""
    warn(tokenizers.names([CUT]), "stage")
    assert capsys.readouterr().err.startswith("warning: stage: 1 texts are truncated, 1 of them")
    check_names_kept(tokenized(tokenizers.t5, "T5", [WHOLE], 9), "stage")
    with pytest.raises(DataError, match="stage: 1 texts are truncated, 1 of them in a name or relation"):
        check_names_kept(tokenizers.names([CUT, WHOLE]), "stage")


def test_words_that_become_unknown_tokens_are_named(tokenizers: ClipAndT5) -> None:
    found = tokenizers.prompts(["a photo of dög left of cat", WHOLE])
    assert [each.unknown for each in found if each.encoder == "T5"] == [("dög",), ()]
    assert all(each.unknown == () for each in found if each.text == WHOLE)


def test_the_tokenizers_of_a_pipeline(schnell: Path) -> None:
    plain = open_tokenizers(backbone_of(schnell))
    assert isinstance(plain, ClipAndT5) and isinstance(plain.t5, T5Tokenizer) and isinstance(plain.clip, CLIPTokenizer)
    assert plain.length == backbone_of(schnell).max_sequence_length
