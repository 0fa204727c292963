"""How each of the 24 relation classes is drawn: which objects may take part and where they go.

A rule returns the top-left corners of subject and object relative to one another, who is drawn last, and the lines between them.
The class and the two names decide, nothing is left to chance: a triple has one layout, in which both face right. So a caption that
leaves the roles open means two layouts at most, few enough for a generator of a few steps to choose between.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import permutations

from sgpipe.errors import DataError
from sgpipe.relations.predicates import DIRECTIONAL, PREDICATES
from sgworld.pen import Point
from sgworld.pictograms import NAMES, PICTOGRAMS, anchor

Line = tuple[Point, ...]


@dataclass(frozen=True)
class Layout:
    """Places of a pair, pixels, in a frame of its own; `lines` are drawn in grey, dotted ones as dots."""

    subject: Point
    object: Point
    front: str = "subject"
    lines: tuple[Line, ...] = ()
    dots: tuple[Point, ...] = field(default=())


Rule = Callable[[str, str], Layout]

PEOPLE_AND_ANIMALS = ("person", "dog", "cat", "horse", "cow", "sheep", "elephant", "bird")
SMALL_ANIMALS = ("dog", "cat", "sheep", "bird")
SMALL_THINGS = ("flower", "banana", "apple", "hat", "bag", "ball", "cup", "bottle", "pizza", "laptop", "book", "clock")
VEHICLES = ("car", "bus", "train", "boat", "bike", "motorcycle", "airplane")
_ALL = tuple(NAMES)

ADMISSIBLE: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    **dict.fromkeys([*sorted(DIRECTIONAL), "around/near", "touching"], (_ALL, _ALL)),
    "in": ((*SMALL_ANIMALS, "person", *SMALL_THINGS, "umbrella"), ("box", "basket", "bag", "bed")),
    "on": ((*SMALL_THINGS, "basket", "box", "umbrella"), ("table", "bench", "bed", "box", "chair", "car", "bus", "tree")),
    "sitting on": (
        ("person", *SMALL_ANIMALS),
        ("chair", "bench", "bed", "table", "box", "tree", "car", "boat", "bus", "train"),
    ),
    "standing on": (
        PEOPLE_AND_ANIMALS,
        ("table", "bench", "box", "bed", "bus", "train", "boat", "car", "horse", "cow", "elephant"),
    ),
    "riding": (
        ("person", *SMALL_ANIMALS),
        ("horse", "cow", "elephant", "sheep", "dog", "bike", "motorcycle", "bus", "train"),
    ),
    "hanging from": (
        ("bag", "basket", "banana", "apple", "clock", "kite", "umbrella", "hat", "ball", "cup", "bottle"),
        ("tree", "airplane", "umbrella", "kite", "bird", "clock"),
    ),
    "holding": (PEOPLE_AND_ANIMALS, (*SMALL_THINGS, "umbrella", "kite")),
    "carrying": (
        ("person", "horse", "cow", "sheep", "elephant", "dog", "car"),
        ("bag", "box", "basket", "pizza", "laptop", "bed", "ball", "umbrella", "clock"),
    ),
    "wearing": (PEOPLE_AND_ANIMALS, ("hat", "bag", "flower", "umbrella", "basket", "box")),
    "pulling": (
        ("person", "horse", "cow", "elephant", "dog", "car", "train", "motorcycle"),
        ("boat", "box", "basket", "bed", "bus", "tree", "car"),
    ),
    "pushing": (
        ("person", "elephant", "horse", "cow", "sheep", "dog", "cat", "bus"),
        ("car", "box", "bike", "basket", "bed", "motorcycle", "boat", "table"),
    ),
    "looking at": (PEOPLE_AND_ANIMALS, _ALL),
    "eating": (PEOPLE_AND_ANIMALS, ("apple", "banana", "pizza", "flower")),
    "drinking": (PEOPLE_AND_ANIMALS, ("cup", "bottle")),
    "using": (
        PEOPLE_AND_ANIMALS,
        ("laptop", "book", "clock", "umbrella", "bike", "table", "chair", "bag", "bed"),
    ),
    "playing with": (
        PEOPLE_AND_ANIMALS,
        ("ball", "kite", "bottle", "hat", "apple", "book", "flower", "bag", "umbrella", "box"),
    ),
}  # fmt: skip
"""Subjects and objects of each class. Directional and symmetric classes take any two, so that names tell nothing of roles."""

HIDING = {
    ("cat", "sitting on", "chair"),
    ("dog", "sitting on", "chair"),
    ("sheep", "sitting on", "chair"),
    ("sheep", "sitting on", "box"),
    ("banana", "in", "basket"),
    ("banana", "in", "bed"),
    ("hat", "in", "bag"),
    ("bottle", "in", "bag"),
}
"""Triples of which one would cover most of the other."""


def admissible(predicate: str) -> list[tuple[str, str]]:
    """All ordered pairs of different names that a class may join."""
    if predicate not in ADMISSIBLE:
        raise DataError(f"predicate {predicate!r} has no drawing rule; valid: {', '.join(PREDICATES)}")
    subjects, objects = ADMISSIBLE[predicate]
    if subjects == objects:
        return list(permutations(subjects, 2))
    return [(s, o) for s in subjects for o in objects if s != o and (s, predicate, o) not in HIDING]


def _size(name: str) -> tuple[int, int]:
    return PICTOGRAMS[name].size


def _beside(subject: str, object_: str, gap: float) -> Layout:
    """Object to the right of the subject, `gap` apart, feet on one line."""
    (sw, sh), (_, oh) = _size(subject), _size(object_)
    return Layout((0, 0), (sw + gap, sh - oh))


def _left(subject: str, object_: str) -> Layout:
    (sw, sh), (_, oh) = _size(subject), _size(object_)
    return Layout((0, 0), (sw + 6, (sh - oh) / 2))


def _above(subject: str, object_: str) -> Layout:
    (sw, sh), (ow, _) = _size(subject), _size(object_)
    return Layout((0, 0), ((sw - ow) / 2, sh + 6))


def _turned(rule: Rule) -> Rule:
    def inverse(subject: str, object_: str) -> Layout:
        made = rule(object_, subject)
        front = "object" if made.front == "subject" else "subject"
        return Layout(made.object, made.subject, front)

    return inverse


def _in_front(subject: str, object_: str) -> Layout:
    """The front one to the left, lower by 6 px and over 40 % of the narrower one's width."""
    (sw, sh), (ow, oh) = _size(subject), _size(object_)
    return Layout((0, 0), (sw - 0.4 * min(sw, ow), sh - oh - 6))


def _near(subject: str, object_: str) -> Layout:
    """Corner to corner: the object a gap of about 2 px to the right and half a height lower."""
    (sw, sh), (_, oh) = _size(subject), _size(object_)
    return Layout((0, 0), (sw + 2, (sh - oh) / 2 + 0.55 * (sh + oh) / 2))


def _touching(subject: str, object_: str) -> Layout:
    """Side by side on one ground, edges in contact."""
    return _beside(subject, object_, -2.0)


def _upon(sink: float, front: str = "subject") -> Rule:
    """The subject's lowest `sink` (share of its height) below the object's seat, centred on the seat."""

    def rule(subject: str, object_: str) -> Layout:
        sw, sh = _size(subject)
        x, y = anchor(object_, "seat", "right")
        return Layout((x - sw / 2, y + 1 - sh * (1 - sink)), (0, 0), front=front)

    return rule


def _inside(subject: str, object_: str) -> Layout:
    """Behind the container's front, a third of the subject's height hidden."""
    (sw, sh), (ow, oh) = _size(subject), _size(object_)
    x, y = anchor(object_, "seat", "right") if PICTOGRAMS[object_].seat else (ow / 2, oh * 0.3)
    hidden = min(sh / 3, oh - y - 1)
    return Layout((x - sw / 2, y - sh + hidden), (0, 0), front="object")


def _hanging(subject: str, object_: str) -> Layout:
    """Below the object, on a string of 6 px."""
    (sw, _), (ow, oh) = _size(subject), _size(object_)
    x = ow / 2
    return Layout((x - sw / 2, oh + 5), (0, 0), lines=(((x, oh - 2), (x, oh + 6)),))


def _at(kind: str, inset: float) -> Rule:
    """The object's middle beside the subject's anchor, overlapping it by `inset` pixels, in front."""

    def rule(subject: str, object_: str) -> Layout:
        _, oh = _size(object_)
        x, y = anchor(subject, kind, "right")
        return Layout((0, 0), (x - inset, y - oh / 2), front="object")

    return rule


def _carrying(subject: str, object_: str) -> Layout:
    """The load on the back of an animal or a car, over the head of a person between two raised arms."""
    (sw, _), (ow, oh) = _size(subject), _size(object_)
    if subject == "person":
        arms = (((2.0, 9.0), (-0.5, -1.0)), ((sw - 2.0, 9.0), (sw + 0.5, -1.0)))
        return Layout((0, 0), ((sw - ow) / 2, -oh - 1), front="object", lines=arms)
    x, y = anchor(subject, "seat", "right")
    return Layout((0, 0), (x - ow / 2, y - oh + 2), front="object")


def _wearing(subject: str, object_: str) -> Layout:
    """On top of the head, overlapping it."""
    ow, oh = _size(object_)
    x, y = anchor(subject, "head", "right")
    return Layout((0, 0), (x - ow / 2, y - oh + 3), front="object")


def _pulling(subject: str, object_: str) -> Layout:
    """The object behind, on a rope."""
    (sw, sh), (ow, oh) = _size(subject), _size(object_)
    gap = min(9.0, 61.0 - sw - ow)
    y = sh - min(sh, oh) / 2
    return Layout((0, 0), (-ow - gap, sh - oh), lines=(((2, y), (-gap - 2, y)),))


def _pushing(subject: str, object_: str) -> Layout:
    """The object ahead, in contact; two streaks behind the subject."""
    made = _beside(subject, object_, -2.0)
    _, sh = _size(subject)
    streaks = tuple(((-2.0, sh * f), (-5.0, sh * f)) for f in (0.35, 0.65))
    return Layout(made.subject, made.object, lines=streaks)


def _looking(subject: str, object_: str) -> Layout:
    """Facing the object across a gap, with a dotted line of sight from the eye."""
    (sw, sh), (ow, oh) = _size(subject), _size(object_)
    gap = min(10.0, 62.0 - sw - ow)
    ex, ey = anchor(subject, "eye", "right")
    edge = sw + gap + 1
    dots = tuple((ex + (edge - ex) * f, ey) for f in (0.4, 0.6, 0.8, 1.0))
    return Layout((0, 0), (sw + gap, min(ey - oh / 2, sh - oh + 2.0)), dots=dots)


def _playing(subject: str, object_: str) -> Layout:
    """The object before the feet, three marks of motion above it."""
    made = _beside(subject, object_, 3.0)
    (x, y), (w, _) = made.object, _size(object_)
    marks = tuple(((x + w * f, y - 2.0), (x + w * f + (f - 0.5) * 5, y - 5.5)) for f in (0.1, 0.5, 0.9))
    return Layout(made.subject, made.object, lines=marks)


RULES: dict[str, Rule] = {
    "above": _above,
    "around/near": _near,
    "behind": _turned(_in_front),
    "below": _turned(_above),
    "carrying": _carrying,
    "drinking": _at("mouth", 3),
    "eating": _at("mouth", 3),
    "hanging from": _hanging,
    "holding": _at("hand", 2),
    "in": _inside,
    "in front of": _in_front,
    "left of": _left,
    "looking at": _looking,
    "on": _upon(0.0),
    "playing with": _playing,
    "pulling": _pulling,
    "pushing": _pushing,
    "riding": _upon(0.35),
    "right of": _turned(_left),
    "sitting on": _upon(0.22),
    "standing on": _upon(0.0),
    "touching": _touching,
    "using": lambda subject, object_: _beside(subject, object_, -4.0),
    "wearing": _wearing,
}
