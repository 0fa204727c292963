"""Boxes `(x, y, w, h)` in pixels, origin at the top left, y down: overlap, crops, and which relations two boxes stand in.

One rule says where a box stands as seen from another (`direction_shares`): relations derived from boxes take the largest share,
the detector judges' `RULES` take GenEval's margins of it. A class without a rule in `RULES` is not seen in boxes; classes that
share one cannot be told apart by boxes. A judge is refused for either, since neither statement of such a pair wins.
"""

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sgpipe.relations.predicates import RELATIONS, BoxRule, Table

Boxes = NDArray[np.float64]
DIRECTIONS: Final = ("left of", "right of", "above", "below")


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


def direction_shares(subject: Boxes, object_: Boxes, slack: float = 0.0) -> NDArray[np.float64]:
    """How far the subjects stand in each of `DIRECTIONS` from the objects, `[N, 4]`, 0–1: THE rule from boxes to directions.

    The offset of the centres is shortened on each axis by `slack` of the summed sizes; a share is what is left of it in a direction
    over the whole offset. 0 throughout for centres in one place.
    """
    offset = subject[:, :2] + subject[:, 2:] / 2 - object_[:, :2] - object_[:, 2:] / 2
    length = np.hypot(*offset.T)[:, None]
    left = np.sign(offset) * np.maximum(np.abs(offset) - slack * (subject[:, 2:] + object_[:, 2:]), 0.0)
    x, y = np.divide(left, length, out=np.zeros_like(left), where=length > 0).T
    return np.stack([-x, x, -y, y], axis=1).clip(min=0.0)


def sector(subject: Boxes, object_: Boxes) -> NDArray[np.str_]:
    """The direction of each pair with the largest share, so that four sectors of 90° tile the plane.

    With θ from the object's to the subject's centre (y down): |θ| ≥ 135° left of, [−135°, −45°) above, [−45°, 45°) right of,
    [45°, 135°) below (facts of scene-graph-to-image work on COCO-Stuff); centres in one place are right of.
    """
    left, right, above, below = direction_shares(subject, object_).T
    return np.select(
        [(left > 0) & (left >= above + below), above > left + right, (right > below) | (below == 0)],
        ["left of", "above", "right of"],
        "below",
    )


def geometric_relation(subject: Boxes, object_: Boxes) -> tuple[NDArray[np.str_], NDArray[np.bool_]]:
    """Class of each pair by sg2im's rule: strict containment first, then the `sector`.

    A subject that surrounds its object is `in` with the second value, "exchange the two", true.
    """
    s_low, s_high = subject[:, :2], subject[:, :2] + subject[:, 2:]
    o_low, o_high = object_[:, :2], object_[:, :2] + object_[:, 2:]
    surrounding = np.all((s_low < o_low) & (s_high > o_high), axis=1)
    inside = np.all((s_low > o_low) & (s_high < o_high), axis=1)
    return np.where(surrounding | inside, "in", sector(subject, object_)), surrounding


def square_crop(boxes: Boxes, margin: float, width: NDArray, height: NDArray, min_side: float = 0.0, align: float = 0.0) -> Boxes:
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


Box = tuple[float, float, float, float]
Rule = Callable[[Box, Box], bool]

SLACK: Final = 0.1
"""Share of the summed sizes by which centres must be apart before a direction counts (GenEval, Ghosh et al. 2023, appendix)."""
CLEAR: Final = 0.5
"""Least share of the distance of the centres that lies along a direction: sin 30°, so that a diagonal counts twice (GenEval)."""
INSIDE: Final = 0.9
"""Least share of the subject's area that lies inside the object's box."""
CONTACT: Final = 0.15
"""Distance, as a share of the subject's height, within which its foot touches; also of the smaller box's size for contact."""
NEAR: Final = 0.5
"""Largest gap between two boxes, as a share of the mean of their four sides."""


def _centre(box: Box) -> tuple[float, float]:
    return box[0] + box[2] / 2, box[1] + box[3] / 2


def _shared(a: Box, b: Box, axis: int) -> float:
    """Length that two boxes have in common along x (0) or y (1); negative is the gap between them."""
    return min(a[axis] + a[axis + 2], b[axis] + b[axis + 2]) - max(a[axis], b[axis])


def directions(a: Box, b: Box) -> frozenset[str]:
    """Where the first box stands as seen from the second, GenEval's rule: one direction, two on a diagonal, none near the middle.

    A direction counts where its share, with `SLACK`, exceeds `CLEAR`.
    """
    (shares,) = direction_shares(np.array([a], np.float64), np.array([b], np.float64), SLACK)
    return frozenset(name for name, share in zip(DIRECTIONS, shares, strict=True) if share > CLEAR)


def _toward(name: str) -> Rule:
    return lambda a, b: name in directions(a, b)


def _inside(a: Box, b: Box) -> bool:
    """At least `INSIDE` of the subject's box lies in the object's, which is the larger one."""
    width, height = max(0.0, _shared(a, b, 0)), max(0.0, _shared(a, b, 1))
    return a[2] * a[3] < b[2] * b[3] and width * height >= INSIDE * a[2] * a[3]


def _upon(a: Box, b: Box) -> bool:
    """The subject's centre over the object's and its foot on or in the object's upper part, half of the narrower one over it."""
    foot = a[1] + a[3]
    resting = b[1] - CONTACT * a[3] <= foot <= b[1] + 0.75 * b[3]
    return _centre(a)[1] < _centre(b)[1] and resting and _shared(a, b, 0) >= 0.5 * min(a[2], b[2])


def _hanging(a: Box, b: Box) -> bool:
    """The subject's centre below the object's, its top in the object's box or just below, under part of it."""
    reach = b[1] + b[3] + CONTACT * a[3]
    return _centre(a)[1] > _centre(b)[1] and b[1] <= a[1] <= reach and _shared(a, b, 0) > 0


def _near(a: Box, b: Box) -> bool:
    """No farther apart than `NEAR` of the mean side, neither inside the other."""
    gap = float(np.hypot(max(0.0, -_shared(a, b, 0)), max(0.0, -_shared(a, b, 1))))
    return gap <= NEAR * (sum(a[2:]) + sum(b[2:])) / 4 and not _inside(a, b) and not _inside(b, a)


def _touching(a: Box, b: Box) -> bool:
    """Boxes overlap or come within `CONTACT` of the smaller one's size on both axes, neither inside the other."""
    reach = [CONTACT * min(a[axis + 2], b[axis + 2]) for axis in (0, 1)]
    meets = all(_shared(a, b, axis) >= -reach[axis] for axis in (0, 1))
    return meets and not _inside(a, b) and not _inside(b, a)


BOX_RULES: Final[Mapping[BoxRule, Rule]] = {
    "left of": _toward("left of"),
    "right of": _toward("right of"),
    "above": _toward("above"),
    "below": _toward("below"),
    "inside": _inside,
    "upon": _upon,
    "hanging": _hanging,
    "near": _near,
    "touching": _touching,
}
RULES: Final = Table(lambda: {name: BOX_RULES[each.box_rule] for name, each in RELATIONS.items() if each.box_rule})
"""The rule of each class in force that has one, `box_rule` of its list."""
