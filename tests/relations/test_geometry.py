"""Boxes: identities of clipping, overlap and crops, and the rule for relations from boxes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgpipe.relations.boxes import clip, geometric_relation, overlap, square_crop, union

SIDE = st.integers(1, 300)
BOX = st.tuples(st.integers(-50, 300), st.integers(-50, 300), SIDE, SIDE)


def rows(*boxes: tuple[float, ...]) -> np.ndarray:
    return np.array(boxes, dtype=np.float64)


@given(BOX, SIDE, SIDE)
def test_clipping_twice_is_clipping_once(box: tuple[int, ...], width: int, height: int) -> None:
    once = clip(rows(box), np.array([width]), np.array([height]))
    assert np.array_equal(once, clip(once, np.array([width]), np.array([height])))
    assert (once >= 0).all()
    assert once[0, 0] + once[0, 2] <= width
    assert once[0, 1] + once[0, 3] <= height


@given(BOX, BOX)
def test_overlap_is_symmetric_and_one_only_for_equal_boxes(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    value = overlap(rows(a), rows(b))[0]
    assert value == overlap(rows(b), rows(a))[0]
    assert 0 <= value <= 1
    assert (value == 1) == (a == b)
    assert overlap(rows(a), union(rows(a), rows(b)))[0] == pytest.approx(a[2] * a[3] / np.prod(union(rows(a), rows(b))[0, 2:]))


@given(BOX, st.floats(0, 1), SIDE, SIDE)
def test_a_crop_lies_in_the_image_and_holds_the_box(box: tuple[int, ...], margin: float, width: int, height: int) -> None:
    inside = clip(rows(box), np.array([width]), np.array([height]))
    x, y, w, h = square_crop(inside, margin, np.array([width]), np.array([height]))[0]
    assert min(x, y) >= 0
    assert x + w <= width + 1e-9
    assert y + h <= height + 1e-9
    bx, by, bw, bh = inside[0]
    assert x <= bx + 1e-9 and y <= by + 1e-9 and x + w >= bx + bw - 1e-9 and y + h >= by + bh - 1e-9
    assert w == pytest.approx(h) or w == width or h == height


def test_the_smallest_side_of_a_crop() -> None:
    box = rows((100, 50, 10, 20))
    wide, tall = np.array([200]), np.array([300])
    assert square_crop(box, 0.0, wide, tall, 64)[0].tolist() == [73, 28, 64, 64]
    assert square_crop(box, 0.0, wide, tall, 10)[0].tolist() == square_crop(box, 0.0, wide, tall)[0].tolist()


@given(BOX, SIDE, SIDE, st.sampled_from([2, 4, 8]))
def test_aligned_crops_stand_on_the_grid_near_the_free_ones(box: tuple[int, ...], width: int, height: int, align: int) -> None:
    inside, wide, tall = (clip(rows(box), np.array([width]), np.array([height])), np.array([width]), np.array([height]))
    free = square_crop(inside, 0.0, wide, tall, 32)[0]
    x, y, w, h = square_crop(inside, 0.0, wide, tall, 32, align)[0]
    assert x % align == 0 and y % align == 0
    assert min(x, y) >= 0 and x + w <= width and y + h <= height and (w, h) == tuple(free[2:])
    assert max(abs(x - free[0]), abs(y - free[1])) < align


@pytest.mark.parametrize(
    ("dx", "dy", "name"),
    [
        (-9, 0, "left of"),
        (9, 0, "right of"),
        (0, -9, "above"),
        (0, 9, "below"),
        (-9, 9, "left of"),
        (-9, -9, "left of"),
        (9, -9, "right of"),
        (9, 9, "below"),
    ],
)
def test_the_angle_decides_with_half_open_quadrants(dx: int, dy: int, name: str) -> None:
    classes, exchange = geometric_relation(rows((50 + dx, 50 + dy, 4, 4)), rows((50, 50, 4, 4)))
    assert (classes[0], exchange[0]) == (name, False)


def test_containment_comes_first() -> None:
    big, small = rows((0, 0, 100, 100)), rows((60, 50, 10, 10))
    assert [value[0] for value in geometric_relation(small, big)] == ["in", False]
    assert [value[0] for value in geometric_relation(big, small)] == ["in", True]
