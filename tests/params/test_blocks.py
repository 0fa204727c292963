"""Block sets: all spellings of DESIGN.md §3, their equality and their refusals."""

from collections.abc import Iterable
from pathlib import Path

import pytest
from dvc.utils.hydra import apply_overrides
from hypothesis import given
from hypothesis import strategies as st

from sgpipe.errors import ParamsError
from sgpipe.params.blocks import Blocks, LayerGroup
from sgpipe.params.load import read_yaml, to_builtins


@pytest.mark.parametrize(
    "spelling",
    ["7..12", "[7..12]", ["7..12"], "[7,8,9..12]", [7, 8, "9..12"], [7, 8, 9, 10, 11, 12], "12,11,10,7..9", [12, "7..11"]],
)
def test_spellings_of_one_set_are_equal(spelling: object) -> None:
    assert Blocks.parse(spelling) == Blocks.parse("7..12")
    assert Blocks.parse(spelling).resolve(19, "lora.blocks") == (7, 8, 9, 10, 11, 12)
    assert str(Blocks.parse(spelling)) == "[7..12]"


@pytest.mark.parametrize(
    ("override", "indices"),
    [
        ("[7..12]", range(7, 13)),
        ("7..12", range(7, 13)),
        ("[7,8,9..12]", range(7, 13)),
        ("[0..6,13..18]", (*range(7), *range(13, 19))),
        ("7", (7,)),
        ("all", range(19)),
        ("none", ()),
        ("[]", ()),
    ],
)
def test_what_dvc_makes_of_an_override(override: str, indices: Iterable[int], tmp_path: Path) -> None:
    """`dvc exp run -S 'lora.blocks=[0..6,13..18]'` writes the list `["0..6", "13..18"]` into params.yaml."""
    path = tmp_path / "params.yaml"
    path.write_text("lora: {blocks: 1}\n")
    apply_overrides(path, [f"lora.blocks={override}"])
    assert Blocks.parse(read_yaml(path)["lora"]["blocks"]).resolve(19, "k") == tuple(indices)


def test_all_and_none() -> None:
    assert Blocks.parse("all").resolve(19, "k") == tuple(range(19))
    assert Blocks.parse("none").resolve(19, "k") == Blocks.parse([]).resolve(19, "k") == ()
    assert Blocks.parse("all").resolve(0, "k") == ()
    assert Blocks.parse(["all"]) == Blocks.parse("[all]")


@pytest.mark.parametrize(
    ("given_", "says"),
    [
        ("12..7", "reversed; write 7..12"),
        ("[7,7]", "7 is named more than once"),
        ("7..9,8", "8 is named more than once"),
        ("7...9", "no block or range"),
        ("-1", "no block or range"),
        ("seven", "no block or range"),
        ([7.5], "valid: a range"),
        (True, "valid: a range"),
        ({"a": 1}, "valid: a range"),
        ("all,3", "no block or range"),
        ("0..9999999999", "no model has a block 9999999999; valid: 0..9999"),
    ],
)
def test_refusals_say_what_was_given_and_what_is_valid(given_: object, says: str) -> None:
    with pytest.raises(ValueError, match="got ") as caught:
        Blocks.parse(given_)
    assert says in str(caught.value)


def test_out_of_range_names_the_key_and_the_range() -> None:
    with pytest.raises(ParamsError, match=r"lora\.blocks: block 19, 20 is out of range; valid: 0\.\.18, got \[17\.\.20\]"):
        Blocks.parse("17..20").resolve(19, "lora.blocks")
    with pytest.raises(ParamsError, match="the model has no such blocks"):
        Blocks.parse("0").resolve(0, "lora.single_blocks")


@given(st.sets(st.integers(0, 60)))
def test_printing_and_parsing_are_inverse(indices: set[int]) -> None:
    blocks = Blocks(tuple(sorted(indices)))
    assert Blocks.parse(str(blocks)) == blocks
    assert Blocks.parse(sorted(indices, reverse=True)) == blocks


@pytest.mark.parametrize(
    ("spelling", "plain", "shown"),
    [
        ("7..12", "[7..12]", "[7..12]"),
        ({"blocks": [7, "8..12"]}, "[7..12]", "[7..12]"),
        ({"blocks": "7..12", "single_blocks": "none"}, "[7..12]", "[7..12]"),
        ({"single_blocks": "0,1..37"}, {"single_blocks": "[0..37]"}, "single_blocks [0..37]"),
        ({"single_blocks": 3, "blocks": "all"}, {"blocks": "all", "single_blocks": "[3]"}, "blocks all, single_blocks [3]"),
    ],
)
def test_a_group_has_one_spelling_that_reads_back(spelling: object, plain: object, shown: str) -> None:
    group = LayerGroup.parse(spelling)
    assert to_builtins({"g": group}) == {"g": plain}
    assert LayerGroup.parse(plain) == group and str(group) == shown


def test_what_dvc_makes_of_a_group_of_single_blocks(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("maps: {groups: {early: 0..6}}\n")
    apply_overrides(
        path, ["+maps.groups.single={single_blocks: [0..9,30]}", "maps.groups.early={blocks: 0..6, single_blocks: 0..1}"]
    )
    groups = {name: LayerGroup.parse(raw) for name, raw in read_yaml(path)["maps"]["groups"].items()}
    assert groups["single"] == LayerGroup(Blocks(()), Blocks((*range(10), 30)))
    assert groups["early"].resolve(19, 2, "k") == (*range(7), 19, 20)
