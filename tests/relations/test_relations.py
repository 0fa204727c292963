"""The classes as data: what `relations.yaml` says holds together, and what does not is refused."""

import pytest

from sgpipe.errors import DataError
from sgpipe.relations.predicates import INVERSE, PREDICATES, RELATIONS, SYMMETRIC, phrase, read_relations


def test_the_committed_classes() -> None:
    assert len(PREDICATES) == 24 and tuple(sorted(PREDICATES)) == PREDICATES
    assert {**INVERSE, **{b: a for a, b in INVERSE.items()}} == INVERSE and not SYMMETRIC & INVERSE.keys()
    assert [name for name in PREDICATES if phrase(name) != name] == ["around/near"]
    for name, relation in RELATIONS.items():
        assert name not in relation.may_hold and name not in relation.confusions


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("in: {may_hold: [under]}", "in: 'under' is no class; valid: in"),
        ("above: {inverse: below}\nbelow: {}", "above: inverse 'below' must name 'above'"),
        ("near: {inverse: near, symmetric: true}", "neither be symmetric"),
        ("in: {colour: red}", "unknown field `colour`"),
        ("[in]", "no list of relation classes"),
        ("in: {box_rule: within}", "Invalid enum value 'within'"),
        (
            "port of: {inverse: starboard of, box_rule: left of}\nstarboard of: {inverse: port of, box_rule: above}",
            "port of: box_rule 'left of', of its inverse 'starboard of' 'above'; give that 'right of'",
        ),
    ],
)
def test_what_does_not_hold_together_is_refused(text: str, says: str) -> None:
    with pytest.raises(DataError, match=f"mine.yaml: .*{says}"):
        read_relations(text.encode(), "mine.yaml")
