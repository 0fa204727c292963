"""Rules on boxes, on drawn ones: GenEval's directions, containment, support, nearness."""

import numpy as np
import pytest

from sgpipe.relations.boxes import DIRECTIONS, RULES, Box, direction_shares, directions, sector

MIDDLE: Box = (40, 40, 20, 20)


@pytest.mark.parametrize(
    ("box", "where"),
    [
        ((10, 40, 20, 20), {"left of"}),
        ((70, 40, 20, 20), {"right of"}),
        ((40, 10, 20, 20), {"above"}),
        ((40, 70, 20, 20), {"below"}),
        ((10, 10, 20, 20), {"left of", "above"}),
        ((70, 70, 20, 20), {"right of", "below"}),
        ((42, 41, 20, 20), set()),
        (MIDDLE, set()),
        # 30 px right, 12 px down: (12 − 4) / 32.3 = 0.25 of the distance is left downwards
        ((70, 52, 20, 20), {"right of"}),
        # 5 px right of the middle with sizes 20: 4 px are slack, 1/5 of the distance is left
        ((45, 40, 20, 20), set()),
        # 9 px: 5/9 is left
        ((49, 40, 20, 20), {"right of"}),
    ],
)
def test_directions(box: Box, where: set[str]) -> None:
    assert directions(box, MIDDLE) == where


def test_the_sector_is_the_largest_share() -> None:
    """The rule of derived relations and of the judges is one: what a judge sees in one direction alone is the sector."""
    boxes = np.array([(x, y, 20, 20) for x in range(0, 81, 5) for y in range(0, 81, 5)], np.float64)
    middle = np.broadcast_to(np.array(MIDDLE, np.float64), boxes.shape)
    shares, sectors = direction_shares(boxes, middle), sector(boxes, middle)
    for box, share, name in zip(boxes.tolist(), shares, sectors, strict=True):
        assert share[DIRECTIONS.index(name)] == share.max()
        seen = directions(tuple(box), MIDDLE)
        assert len(seen) != 1 or seen == {name}
    assert np.allclose((shares**2).sum(1), (boxes[:, :2] != MIDDLE[:2]).any(1))


def test_directions_are_their_inverses() -> None:
    for x in range(0, 90, 7):
        for y in range(0, 90, 7):
            box = (x, y, 14, 9)
            for name, inverse in (("left of", "right of"), ("above", "below")):
                assert RULES[name](box, MIDDLE) == RULES[inverse](MIDDLE, box)
                assert not (RULES[name](box, MIDDLE) and RULES[inverse](box, MIDDLE))


@pytest.mark.parametrize(
    ("predicate", "subject", "object_", "holds"),
    [
        ("in", (12, 12, 10, 10), (10, 10, 40, 30), True),
        ("in", (5, 12, 10, 10), (10, 10, 40, 30), False),
        ("in", (10, 10, 40, 30), (12, 12, 10, 10), False),
        ("on", (20, 10, 20, 20), (10, 30, 40, 30), True),
        ("on", (20, 15, 20, 20), (10, 30, 40, 30), True),
        ("on", (20, 0, 20, 20), (10, 30, 40, 30), False),
        ("on", (45, 10, 20, 20), (10, 30, 40, 30), False),
        ("on", (10, 30, 40, 30), (20, 10, 20, 20), False),
        ("hanging from", (20, 41, 8, 12), (10, 10, 30, 30), True),
        ("hanging from", (20, 0, 8, 12), (10, 10, 30, 30), False),
        ("around/near", (10, 10, 10, 10), (24, 10, 10, 10), True),
        ("around/near", (10, 10, 10, 10), (40, 10, 10, 10), False),
        ("touching", (10, 10, 10, 10), (21, 10, 10, 10), True),
        ("touching", (10, 10, 10, 10), (25, 10, 10, 10), False),
        ("touching", (12, 12, 4, 4), (10, 10, 10, 10), False),
    ],
)
def test_rules(predicate: str, subject: Box, object_: Box, holds: bool) -> None:
    assert RULES[predicate](subject, object_) is holds


def test_symmetric_classes_have_symmetric_rules() -> None:
    for name in ("around/near", "touching"):
        for x in range(0, 80, 5):
            box = (x, 0.8 * x, 12, 7)
            assert RULES[name](box, MIDDLE) == RULES[name](MIDDLE, box)


def test_rules_do_not_depend_on_the_size_of_the_picture() -> None:
    boxes = [((12, 9, 10, 10), (10, 30, 40, 30)), ((10, 10, 10, 10), (24, 12, 11, 10)), ((40, 10, 20, 30), MIDDLE)]
    for a, b in boxes:
        larger = [tuple(8 * value for value in box) for box in (a, b)]
        for rule in RULES.values():
            assert rule(a, b) == rule(*larger)
