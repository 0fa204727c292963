"""Which spatial relations two boxes stand in, for photographs: the rules of a detector judge.

Boxes are `(x, y, w, h)` in pixels, origin at the top left, y down. A class without a rule here is not seen in boxes. Classes that
share a rule cannot be told apart by boxes. A judge is refused for either, since neither statement of such a pair wins.
"""

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np

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

    The offset of the centres is shortened on each axis by `SLACK` of the summed sizes; what is left of it, divided by the whole
    offset, must exceed `CLEAR`.
    """
    offset = np.subtract(_centre(a), _centre(b))
    slack = SLACK * np.add(a[2:], b[2:])
    left = np.sign(offset) * np.maximum(np.abs(offset) - slack, 0.0)
    length = float(np.hypot(*offset))
    if length == 0.0:
        return frozenset()
    dx, dy = left / length
    named = {"left of": dx < -CLEAR, "right of": dx > CLEAR, "above": dy < -CLEAR, "below": dy > CLEAR}
    return frozenset(name for name, there in named.items() if there)


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


RULES: Final[Mapping[str, Rule]] = {
    **{name: _toward(name) for name in ("left of", "right of", "above", "below")},
    "in": _inside,
    **dict.fromkeys(("on", "standing on", "sitting on", "riding"), _upon),
    "hanging from": _hanging,
    "around/near": _near,
    "touching": _touching,
}
