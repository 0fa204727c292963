"""Free text to classes: the table, the grammar around it, and the official alias file behind it."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgpipe.errors import DataError
from sgpipe.relations.aliases import EMPTY, UNKNOWN, PredicateMap, canonical_names, plain_name, read_aliases
from sgpipe.relations.predicates import PREDICATES

MAP = PredicateMap.load()


@pytest.mark.parametrize("name", PREDICATES)
def test_every_class_can_be_reached(name: str) -> None:
    assert any(meaning.predicate == name for meaning in MAP.table.values())
    if name != "around/near":
        assert MAP.meaning(name).predicate == name


@pytest.mark.parametrize(
    ("raw", "predicate"),
    [
        ("ON", "on"),
        ("on  top of", "on"),
        ("on top if", "on"),
        ("are on", "on"),
        ("is on the", "on"),
        ("has been hanged on", "hanging from"),
        ("WEARING", "wearing"),
        ("wears", "wearing"),
        ("wear", "wearing"),
        ("wearing a", "wearing"),
        ("carries", "carrying"),
        ("rides", "riding"),
        ("sits on", "sitting on"),
        ("sitting in a", "sitting on"),
        ("parked next to", "around/near"),
        ("parked left of", "left of"),
        ("to the right of", "right of"),
        ("under a", "below"),
        ("agaist", "touching"),
        ("standing in front of", "in front of"),
        ("in a", "in"),
        ("lies on", "on"),
        ("lie next to", "around/near"),
        ("hung above the", "above"),
        ("hung in", "in"),
        ("wore", "wearing"),
        ("stood by", "around/near"),
        ("all over", "on"),
        ("to the left", "left of"),
        ("on the right side of", "right of"),
        ("in from of", "in front of"),
        ("hanging onto", "hanging from"),
    ],
)
def test_spellings(raw: str, predicate: str) -> None:
    meaning = MAP.meaning(raw)
    assert (meaning.predicate, meaning.inverse) == (predicate, False)


@pytest.mark.parametrize(
    ("raw", "predicate"),
    [
        ("worn by", "wearing"),
        ("is being held by", "holding"),
        ("contains", "in"),
        ("covered in", "on"),
        ("ridden by", "riding"),
        ("covered", "on"),
        ("drawn by a", "pulling"),
    ],
)
def test_inverses(raw: str, predicate: str) -> None:
    meaning = MAP.meaning(raw)
    assert (meaning.predicate, meaning.inverse) == (predicate, True)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ("has", "predicate: has"),
        ("has a", "predicate: has"),
        ("of a", "predicate: of"),
        ("with its", "predicate: with"),
        ("attache dto", "predicate: attached to"),
        ("a", "predicate: article"),
        ("standing", "predicate: posture alone"),
        ("standing up", "predicate: posture alone"),
        ("written by", "predicate: made by"),
        ("played by", "predicate: playing"),
        ("cars", "predicate: noun"),
        ("black", UNKNOWN),
        ("crack is on road.", UNKNOWN),
        ("", EMPTY),
        (" .,", EMPTY),
    ],
)
def test_rejections_have_names(raw: str, reason: str) -> None:
    meaning = MAP.meaning(raw)
    assert (meaning.predicate, meaning.reason) == (None, reason)


@given(st.text(max_size=40))
def test_any_text_has_one_meaning(raw: str) -> None:
    meaning = MAP.meaning(raw)
    assert (meaning.predicate in PREDICATES) != (meaning.reason is not None)
    assert MAP.meaning(f"  {raw.upper()} ").predicate == MAP.meaning(raw.upper()).predicate


def test_aliases_are_followed_for_one_step_and_behind_the_table(tmp_path: Path) -> None:
    path = tmp_path / "relationship_alias.txt"
    path.write_text("above,on top of,looming\nnear,beyond words\nlooming,louring\nriding,above\n")
    assert read_aliases(path) == {"on top of": "above", "beyond words": "near", "louring": "looming"}
    predicates = PredicateMap.load(path)
    assert predicates.meaning("on top of").predicate == "on"
    assert predicates.meaning("beyond words").predicate == "around/near"
    assert predicates.meaning("louring").reason == UNKNOWN
    assert predicates.meaning("above").predicate == "above"


def test_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sgpipe.relations.aliases.REMEMBERED", 2)
    path = tmp_path / "object_alias.txt"
    path.write_text("man,guy,men\nmen,gentlemen\n")
    canonical = canonical_names(read_aliases(path))
    assert [canonical(raw) for raw in ("The  Guy", "gentlemen", "men", "a man.", "a")] == ["man", "men", "men", "man", "a"]
    assert canonical.cache_info().currsize <= 2
    assert plain_name(" \t. ") == ""


def test_an_alias_file_in_another_encoding_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "object_alias.txt"
    path.write_bytes(b"a,b\nc,\xff\n")
    with pytest.raises(DataError, match="line 2: not UTF-8"):
        read_aliases(path)


@given(st.lists(st.sampled_from([*"aB&-'. ", "the ", "a ", "\u3000", '"', "é"]), max_size=8).map("".join))
def test_a_plain_name_stays_what_it_is(raw: str) -> None:
    """So that the name of a table, written in a graph, is found again: the "a -b" and 'the "big" dog' of annotations too."""
    name = plain_name(raw)
    assert plain_name(name) == name
