"""Boxes `[..., 4]` as `x, y, w, h` in pixels, origin at the top left: clipping, overlap, union, relations from boxes."""

import numpy as np
from numpy.typing import NDArray

Boxes = NDArray[np.float64]


def clip(boxes: Boxes, width: NDArray, height: NDArray) -> Boxes:
    """The part of each box inside its image; width or height 0 where nothing is left."""
    x0, y0 = np.clip(boxes[:, 0], 0, width), np.clip(boxes[:, 1], 0, height)
    x1, y1 = np.clip(boxes[:, 0] + boxes[:, 2], 0, width), np.clip(boxes[:, 1] + boxes[:, 3], 0, height)
    return np.stack([x0, y0, np.maximum(x1 - x0, 0), np.maximum(y1 - y0, 0)], axis=1)


def union(a: Boxes, b: Boxes) -> Boxes:
    """The smallest box around each pair."""
    low = np.minimum(a[:, :2], b[:, :2])
    high = np.maximum(a[:, :2] + a[:, 2:], b[:, :2] + b[:, 2:])
    return np.concatenate([low, high - low], axis=1)


def overlap(a: Boxes, b: Boxes) -> NDArray[np.float64]:
    """Intersection over union of each pair, 0–1; 0 for two empty boxes."""
    low = np.maximum(a[:, :2], b[:, :2])
    high = np.minimum(a[:, :2] + a[:, 2:], b[:, :2] + b[:, 2:])
    shared = np.prod(np.maximum(high - low, 0), axis=1)
    total = np.prod(a[:, 2:], axis=1) + np.prod(b[:, 2:], axis=1) - shared
    return np.divide(shared, total, out=np.zeros_like(shared), where=total > 0)


def geometric_relation(subject: Boxes, object_: Boxes) -> tuple[NDArray[np.str_], NDArray[np.bool_]]:
    """Class of each pair by sg2im's rule: strict containment first, then the angle between the centres (y points down).

    With θ the direction from the object's to the subject's centre: |θ| ≥ 135° left of, [−135°, −45°) above, [−45°, 45°)
    right of, [45°, 135°) below. A subject that surrounds its object is `in` with the second value, "exchange the two", true.
    """
    s_low, s_high = subject[:, :2], subject[:, :2] + subject[:, 2:]
    o_low, o_high = object_[:, :2], object_[:, :2] + object_[:, 2:]
    surrounding = np.all((s_low < o_low) & (s_high > o_high), axis=1)
    inside = np.all((s_low > o_low) & (s_high < o_high), axis=1)
    delta = (s_low + s_high - o_low - o_high) / 2
    theta = np.degrees(np.arctan2(delta[:, 1], delta[:, 0]))
    classes = np.select(
        [surrounding | inside, np.abs(theta) >= 135, theta < -45, theta < 45],
        ["in", "left of", "above", "right of"],
        "below",
    )
    return classes, surrounding


def square_crop(
    boxes: Boxes, margin: float, width: NDArray, height: NDArray, min_side: float = 0.0, align: float = 0.0
) -> Boxes:
    """Each box grown by `margin` of its longer side on every side, made square as far as its image allows.

    The square has a side of at least `min_side` pixels and is moved into the image; where it is larger than the image it
    is cut to it. Its upper left corner is rounded to multiples of `align` pixels (0: left as it is), by which a tight crop may
    lose up to half of that from a box.
    """
    side = np.maximum(boxes[:, 2:].max(axis=1) * (1 + 2 * margin), min_side)
    sides = np.minimum(side[:, None], np.stack([width, height], axis=1))
    centre = boxes[:, :2] + boxes[:, 2:] / 2
    limits = np.stack([width, height], axis=1) - sides
    low = np.clip(centre - sides / 2, 0, limits)
    if align:
        low = np.minimum(np.round(low / align), np.floor(limits / align)) * align
    return np.concatenate([low, sides], axis=1)
