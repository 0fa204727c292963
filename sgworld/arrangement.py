"""Which relations two boxes can stand in: the drawing rules read backwards, with room for imperfect pictures.

Boxes are `(x, y, w, h)` in pixels, origin at the top left. Boxes alone do not tell all 24 classes apart: classes of one group below
share a rule, and what separates them (a rope, a posture, a bite) is for the eye and for the other judges.
"""

from collections.abc import Callable

Box = tuple[float, float, float, float]
Rule = Callable[[Box, Box], bool]


def _centre(box: Box) -> tuple[float, float]:
    return box[0] + box[2] / 2, box[1] + box[3] / 2


def _gap_x(a: Box, b: Box) -> float:
    """Free space between two boxes from left to right; negative where they overlap."""
    return max(a[0], b[0]) - min(a[0] + a[2], b[0] + b[2])


def _gap_y(a: Box, b: Box) -> float:
    return max(a[1], b[1]) - min(a[1] + a[3], b[1] + b[3])


def _bottom(box: Box) -> float:
    return box[1] + box[3]


def _left_of(a: Box, b: Box) -> bool:
    """Apart from left to right, centres on one height."""
    (ax, ay), (bx, by) = _centre(a), _centre(b)
    return ax < bx and _gap_x(a, b) >= 2 and abs(ay - by) <= 6


def _above(a: Box, b: Box) -> bool:
    """Apart from top to bottom, centres on one vertical."""
    (ax, ay), (bx, by) = _centre(a), _centre(b)
    return ay < by and _gap_y(a, b) >= 2 and abs(ax - bx) <= 6


def _in_front(a: Box, b: Box) -> bool:
    """Overlapping from left to right by 15–75 % of the narrower one and from top to bottom, the front one's foot lower."""
    overlap = -_gap_x(a, b) / min(a[2], b[2])
    return 0.15 <= overlap <= 0.75 and _gap_y(a, b) < 0 and _bottom(a) >= _bottom(b) + 3


def _near(a: Box, b: Box) -> bool:
    """Corner to corner: at most 5 px apart from left to right, clearly different heights."""
    return -2 <= _gap_x(a, b) <= 5 and abs(_centre(a)[1] - _centre(b)[1]) >= 0.2 * (a[3] + b[3])


def _ground(low: float, high: float) -> Rule:
    """Feet on one line and a horizontal gap within the bounds, pixels."""
    return lambda a, b: low <= _gap_x(a, b) <= high and abs(_bottom(a) - _bottom(b)) <= 4


def _looking(a: Box, b: Box) -> bool:
    """3–13 px apart from left to right, at least a quarter of the smaller one's height in common."""
    return 3 <= _gap_x(a, b) <= 13 and -_gap_y(a, b) >= 0.25 * min(a[3], b[3])


def _upon(a: Box, b: Box) -> bool:
    """Higher than the object, its lower end within the object's box, over the object's middle half."""
    (ax, ay), (bx, by) = _centre(a), _centre(b)
    return ay <= by + 2 and abs(ax - bx) <= b[2] / 2 and b[1] - 3 <= _bottom(a) <= _bottom(b) + 1


def _inside(a: Box, b: Box) -> bool:
    """The subject's lower end within the object's box, over its middle, the middle of the subject not much below the object's."""
    (ax, ay), (bx, by) = _centre(a), _centre(b)
    return ay <= by + 4 and abs(ax - bx) <= b[2] / 2 and b[1] - 3 <= _bottom(a) <= _bottom(b) + 1


def _hanging(a: Box, b: Box) -> bool:
    """Below the object's middle, 2–9 px lower."""
    return _centre(a)[1] > _centre(b)[1] and 2 <= _gap_y(a, b) <= 9 and abs(_centre(a)[0] - _centre(b)[0]) <= 5


def _at_side(a: Box, b: Box) -> bool:
    """In contact with the subject or over it, the object's middle beside the subject's body."""
    return -13 <= _gap_x(a, b) <= 2 and a[1] - 4 <= _centre(b)[1] <= _bottom(a) + 3


def _on_top(a: Box, b: Box) -> bool:
    """The object higher than the subject, its lower end at the subject's upper half."""
    (ax, ay), (bx, by) = _centre(a), _centre(b)
    return by < ay and abs(ax - bx) <= 0.6 * a[2] + 2 and a[1] - 4 <= _bottom(b) <= a[1] + 0.6 * a[3]


def _swapped(rule: Rule) -> Rule:
    return lambda a, b: rule(b, a)


RULES: dict[str, Rule] = {
    "above": _above,
    "below": _swapped(_above),
    "left of": _left_of,
    "right of": _swapped(_left_of),
    "in front of": _in_front,
    "behind": _swapped(_in_front),
    "around/near": _near,
    **dict.fromkeys(("on", "standing on", "sitting on", "riding"), _upon),
    "in": _inside,
    **dict.fromkeys(("holding", "eating", "drinking"), _at_side),
    **dict.fromkeys(("carrying", "wearing"), _on_top),
    "hanging from": _hanging,
    "looking at": _looking,
    "touching": _ground(-5, 1),
    "pushing": _ground(-5, 1),
    "using": _ground(-7, 0),
    "playing with": _ground(0, 6),
    "pulling": _ground(3, 13),
}


def holds(predicate: str, subject: Box, object_: Box) -> bool:
    """Whether the boxes of subject and object stand as the class is drawn, roles included."""
    return RULES[predicate](subject, object_)


def arranged(predicate: str, first: Box, second: Box) -> bool:
    """Whether the class holds one way or the other: the kind of arrangement without the roles."""
    return holds(predicate, first, second) or holds(predicate, second, first)
