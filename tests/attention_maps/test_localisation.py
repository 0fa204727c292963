"""Boxes on the grid of patches, and how much of a map falls into them."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sgpipe.attention_maps.localisation import (
    boxes_in_crop,
    coverage,
    mass_in_box,
    peak_in_box,
    uniform_mass,
)

part = st.floats(0, 1)


@given(part, part, part, part)
def test_coverage_holds_the_area_of_the_box(x: float, y: float, w: float, h: float) -> None:
    box = np.array([[x, y, w * (1 - x), h * (1 - y)]])
    for side in ((4, 4), (3, 7)):
        inside = coverage(box, side)
        assert inside.shape == (1, *side) and inside.min() >= 0 and inside.max() <= 1 + 1e-9
        assert np.isclose(inside.mean(), box[0, 2] * box[0, 3], atol=1e-12)


def test_coverage_by_hand() -> None:
    inside = coverage(np.array([[0.25, 0.0, 0.5, 0.75]]), (2, 2))
    assert np.allclose(inside, [[[0.5, 0.5], [0.25, 0.25]]])


def test_boxes_in_a_crop() -> None:
    boxes = boxes_in_crop(np.array([[30.0, 20, 10, 20]]), np.array([[20.0, 10, 40, 40]]))
    assert np.allclose(boxes, [[0.25, 0.25, 0.25, 0.5]])


def test_mass_of_flat_whole_and_pointed_maps() -> None:
    inside = coverage(np.array([[0.0, 0, 0.5, 0.5]] * 3), (4, 4))
    pointed = np.zeros((4, 4))
    pointed[1, 1] = 5.0
    maps = np.stack([np.full((4, 4), 3.0), inside[0] - 7, pointed])
    assert np.allclose(mass_in_box(maps, inside), [0.25, 1.0, 1.0])
    assert np.allclose(uniform_mass(inside), 0.25)
    assert peak_in_box(maps, inside)[1:].tolist() == [True, True]
    assert not peak_in_box(pointed[None, ::-1, ::-1], inside[:1])[0]


@given(st.floats(0.1, 10), st.floats(-5, 5))
def test_mass_does_not_depend_on_scale_and_offset(scale: float, offset: float) -> None:
    rng = np.random.default_rng(0)
    maps, inside = rng.random((2, 4, 4)), coverage(np.array([[0.1, 0.2, 0.5, 0.4]] * 2), (4, 4))
    assert np.allclose(mass_in_box(maps * scale + offset, inside), mass_in_box(maps, inside))
