"""The table of the 24 relation classes, by which scenes are drawn *and* read.

A row says which names a class may join, where the object may stand relative to the subject, who is drawn last, who faces whom, and
which mark tells the class apart where boxes cannot. Rows are for an object to the right of the subject.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from sgpipe.relations.predicates import INVERSE, PREDICATES
from sgworld.world import geometry as at
from sgworld.world.geometry import Box, Holds, Offset, Offsets
from sgworld.world.sprites import NAMES, size_of

Size = tuple[int, int]

ANIMATE = ("person", "dog", "cat", "horse", "cow", "sheep", "elephant", "bird")
SMALL = ("flower", "banana", "apple", "hat", "bag", "ball", "cup", "bottle", "pizza", "laptop", "book", "clock", "umbrella", "kite",
         "basket", "box")  # fmt: skip
VEHICLES = ("car", "bus", "train", "boat", "bike", "motorcycle", "airplane")
SEATS = ("chair", "bench", "bed", "table", "box", "tree", "car", "boat", "bus", "train", "horse", "cow", "elephant", "sheep")
LITTLE_ANIMALS = ("dog", "cat", "sheep", "bird")
MOUNTS = ("horse", "cow", "elephant", "sheep", "dog", *VEHICLES)
HANGERS = ("tree", "umbrella", "kite", "airplane", "clock", "bird", "table", "bus", "bench")
FOOD = ("flower", "banana", "apple", "pizza", "cup", "bag", "basket", "tree")
CONTAINERS = ("box", "basket", "bag", "bed", "boat", "car", "bus", "train", "cup", "hat", "tree", "umbrella")
CLOTHES = ("hat", "bag", "flower", "umbrella", "basket", "box", "clock", "cup", "ball", "kite", "book")
PUSHED = (*VEHICLES, "box", "basket", "bed", "table", "chair", "ball", "bag", "cow", "elephant")
PULLED = (*VEHICLES, "box", "basket", "bed", "tree", "bag", "kite", "cow", "horse")
VESSELS = ("cup", "bottle", "bag", "box", "basket", "hat", "boat")
MarkPlace = Callable[[Size, Size, Offset], Box]
"""Place of a mark relative to the subject's corner, by the sizes of both and the object's offset."""


@dataclass(frozen=True)
class Row:
    """One class: `front` comes last, `facing` says who looks to its side, with `sides` its mirror image is drawn, too."""

    subjects: tuple[str, ...]
    objects: tuple[str, ...]
    offsets: Offsets
    holds: Holds | None = None
    mark: MarkPlace | None = None
    front: str = "subject"
    facing: str = "none"
    sides: bool = False


@dataclass(frozen=True)
class Layout:
    """One way to draw a triple: the object's corner relative to the subject's, cells; the mark's place likewise."""

    dx: int
    dy: int
    left: bool
    mark: Box | None
    front: str
    subject_facing: str | None
    object_facing: str | None


def _over_object(size: Size, other: Size, offset: Offset) -> Box:
    return offset[0] + (other[0] - 2) // 2, offset[1] - 2, 2, 2


def _over_far_end(size: Size, other: Size, offset: Offset) -> Box:
    return offset[0] + other[0] - 2, offset[1] - 2, 2, 2


def _below_far_end(size: Size, other: Size, offset: Offset) -> Box:
    return offset[0] + other[0] - 2, offset[1] + other[1], 2, 2


def _at_grip(size: Size, other: Size, offset: Offset) -> Box:
    return offset[0], offset[1] + other[1] - 1, 2, 2


def _behind_subject(size: Size, other: Size, offset: Offset) -> Box:
    return -2, (size[1] - 2) // 2, 2, 2


def _behind_object(size: Size, other: Size, offset: Offset) -> Box:
    return offset[0] - 2, offset[1] + other[1] - 2, 2, 2


def _under_feet(size: Size, other: Size, offset: Offset) -> Box:
    return (size[0] - 2) // 2, size[1], 2, 1


def _over_feet(size: Size, other: Size, offset: Offset) -> Box:
    return 0, size[1] - 1, size[0], 1


def _on_hem(size: Size, other: Size, offset: Offset) -> Box:
    return offset[0] + (other[0] - 2) // 2, offset[1] + other[1] - 1, 2, 1


def _over_seam(size: Size, other: Size, offset: Offset) -> Box:
    return offset[0] + (other[0] - 2) // 2, offset[1] + other[1] - 1, 2, 2


def _down_gap(size: Size, other: Size, offset: Offset) -> Box:
    return size[0] // 2, offset[1] + other[1], 1, -offset[1] - other[1]


def _low_across_gap(size: Size, other: Size, offset: Offset) -> Box:
    return size[0], size[1] - 2, offset[0] - size[0], 1


def _high_across_gap(size: Size, other: Size, offset: Offset) -> Box:
    return size[0], max(0, offset[1]), offset[0] - size[0], 1


def _act(
    objects: tuple[str, ...],
    offsets: Offsets,
    mark: MarkPlace,
    *,
    subjects: tuple[str, ...] = ANIMATE,
    front: str = "subject",
    facing: str = "subject",
) -> Row:
    """A class whose subject turns to one side."""
    return Row(subjects, objects, offsets, None, mark, front, facing, sides=True)


_ROWS: dict[str, Row] = {
    "left of": Row(NAMES, NAMES, at.left, at.left_holds),
    "above": Row(NAMES, NAMES, at.above, at.above_holds),
    "in front of": Row(NAMES, NAMES, at.in_front, at.front_holds, sides=True),
    "around/near": Row(NAMES, NAMES, at.near, at.near_holds, sides=True),
    "touching": Row(NAMES, NAMES, at.touching, at.touching_holds, sides=True),
    "on": Row((*ANIMATE, *SMALL, "chair"), (*SEATS, "airplane", "basket"), at.resting(0), at.on_holds),
    "in": Row((*ANIMATE, *SMALL), CONTAINERS, at.inside, at.in_holds, front="object"),
    "standing on": Row(ANIMATE, SEATS, at.resting(0), mark=_under_feet),
    "sitting on": Row(ANIMATE, SEATS, at.resting(1), mark=_over_feet),
    "riding": Row(ANIMATE, MOUNTS, at.resting(1), mark=_behind_object, facing="both", sides=True),
    "hanging from": Row((*SMALL, "bird", "cat"), HANGERS, at.hanging, mark=_down_gap),
    "carrying": Row((*ANIMATE, *VEHICLES), (*SMALL, *LITTLE_ANIMALS, "chair", "bike"), at.load, mark=_over_seam, front="object"),
    "holding": _act((*SMALL, "cat", "bird", "dog"), at.reached(0.5), _at_grip, front="object"),
    "eating": _act(FOOD, at.reached(0.3), _below_far_end, front="object"),
    "drinking": _act(VESSELS, at.reached(0.3), _over_far_end, front="object"),
    "wearing": _act(CLOTHES, at.worn, _on_hem, front="object"),
    "using": _act((*SMALL, "bike", "table", "chair", "bed"), at.beside(0, 1), _over_object),
    "playing with": _act((*SMALL, *LITTLE_ANIMALS, "bike"), at.beside(1, 2), _over_object),
    "looking at": _act(NAMES, at.beside(2, 3), _high_across_gap),
    "pushing": _act(PUSHED, at.beside(0), _behind_subject, subjects=(*ANIMATE, *VEHICLES)),
    "pulling": _act(PULLED, at.beside(2, 3), _low_across_gap, subjects=(*ANIMATE, *VEHICLES), facing="away"),
}
TURNED = frozenset(INVERSE) - frozenset(_ROWS)
"""Classes drawn as their inverse with the ends exchanged."""


def straight(subject: str, predicate: str, object_: str) -> tuple[str, str, str]:
    """The triple with a class that has a row of its own: `right of` becomes `left of` with the ends exchanged."""
    return (object_, INVERSE[predicate], subject) if predicate in TURNED else (subject, predicate, object_)


@cache
def plausible(subject: str, predicate: str, object_: str) -> bool:
    """Whether the world has this triple."""
    s, p, o = straight(subject, predicate, object_)
    return s != o and s in _ROWS[p].subjects and o in _ROWS[p].objects


@cache
def open_triples(first: str, second: str) -> tuple[tuple[str, str], ...]:
    """All classes that a pair can stand in, each with who is its subject."""
    return tuple((p, s) for p in PREDICATES for s, o in ((first, second), (second, first)) if plausible(s, p, o))


def _mirrored(box: Box, width: int) -> Box:
    return width - box[0] - box[2], box[1], box[2], box[3]


def mark_at(subject: str, predicate: str, object_: str, offset: Offset, left: bool) -> Box:
    """The mark's box relative to the subject's corner, for any offset of the object's; `left` asks for the mirror image's."""
    row, size, other = _ROWS[predicate], size_of(subject), size_of(object_)
    assert row.mark is not None
    if not left:
        return row.mark(size, other, offset)
    return _mirrored(row.mark(size, other, (size[0] - offset[0] - other[0], offset[1])), size[0])


_FACING = {"none": (None, None), "subject": ("right", None), "both": ("right", "right"), "away": ("left", None)}
_OTHER = {"right": "left", "left": "right", None: None}


@cache
def layouts(subject: str, predicate: str, object_: str) -> tuple[tuple[Layout, ...], ...]:
    """All ways to draw a triple: by side (right first), and within a side in the order of the slot `distance`.

    Layouts are relative to the *given* subject and object, also for a class drawn as its inverse.
    """
    s, p, o = straight(subject, predicate, object_)
    row, size, other = _ROWS[p], size_of(s), size_of(o)
    found = []
    for left in (False, True) if row.sides else (False,):
        way = []
        for dx, dy in row.offsets(s, o):
            facing = _FACING[row.facing]
            if left:
                dx, facing = size[0] - dx - other[0], (_OTHER[facing[0]], _OTHER[facing[1]])
            mark = None if row.mark is None else mark_at(s, p, o, (dx, dy), left)
            if p == predicate:
                way.append(Layout(dx, dy, left, mark, row.front, *facing))
            else:
                way.append(Layout(-dx, -dy, left, mark, "object" if row.front == "subject" else "subject", facing[1], facing[0]))
        found.append(tuple(way))
    return tuple(found)


UNMARKED: tuple[str, ...] = tuple(p for p in _ROWS if _ROWS[p].mark is None)
MARKED: tuple[str, ...] = tuple(p for p in _ROWS if _ROWS[p].mark is not None)


def unmarked_holds(predicate: str, subject: Box, object_: Box, object_name: str | None = None) -> bool:
    """Whether the boxes stand as a class without a mark is drawn; the name says where things rest on the object."""
    rule = _ROWS[predicate].holds
    assert rule is not None
    return rule(subject, object_, at.SEAT_ROWS.get(object_name or "", 0))
