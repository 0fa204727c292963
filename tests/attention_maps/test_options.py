"""Options that cannot be used are named; spellings of a group do not matter."""

from itertools import pairwise
from typing import Any

import pytest

from sgpipe.attention_maps.options import MapOptions
from sgpipe.errors import ParamsError
from tests.attention_maps.conftest import GROUPS


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"groups": {}}, "groups: none given"),
        ({"groups": {"early": "3..1"}}, "groups.early: .*reversed"),
        ({"groups": {"early": "none"}}, "groups.early: has no blocks"),
        ({"groups": {"early": {"blocks": "none", "single_blocks": []}}}, "groups.early: has no blocks"),
        ({"groups": {"early": {"single_blocks": "3..1"}}}, "groups.early: single_blocks: .*reversed"),
        ({"groups": {"early": {"singles": "0"}}}, "groups.early: got singles; valid: blocks, single_blocks, or double-stream"),
        ({"groups": GROUPS, "normalisation": "heads"}, "normalisation: got 'heads'; valid: none, concepts, patches"),
        ({"groups": GROUPS, "steps": ()}, "steps: got"),
        ({"groups": GROUPS, "steps": (1, 1)}, "steps: got"),
        ({"groups": GROUPS, "steps": (-1,)}, "steps: got"),
    ],
)
def test_options_are_checked(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ParamsError, match=message):
        MapOptions(**given)


def test_spellings_of_a_group_are_equal() -> None:
    spellings = [MapOptions({"middle": blocks}) for blocks in ("7..12", "[7,8,9..12]", ["7..12"])]
    assert all(a == b for a, b in pairwise(spellings))
    assert spellings[0].resolve(19) == {"middle": (7, 8, 9, 10, 11, 12)}


def test_single_blocks_stand_after_the_double_ones() -> None:
    options = MapOptions({"end": {"blocks": "17..18", "single_blocks": 0}, "single": {"single_blocks": "all"}, "double": "all"})
    found = options.resolve(19, 38)
    assert found == {"end": (17, 18, 19), "single": tuple(range(19, 57)), "double": tuple(range(19))}
    with pytest.raises(ParamsError, match=r"groups.end.single_blocks: block 0 is out of range; valid: none"):
        options.resolve(19)
    with pytest.raises(ParamsError, match=r"groups.single: got single_blocks all, none of 24 double and 0 single blocks"):
        MapOptions({"single": {"single_blocks": "all"}}).resolve(24)
