"""The class table read backwards: which triples boxes and marks show."""

from collections.abc import Mapping, Sequence
from functools import cache
from itertools import permutations

from sgpipe.relations.predicates import INVERSE, SYMMETRIC
from sgworld.world.classes import UNMARKED, layouts, mark_at, plausible, straight, unmarked_holds
from sgworld.world.geometry import Box
from sgworld.world.specification import Mark, Triple

REACH = 1
"""Cells by which an offset may differ from every drawn one where a mark tells the class."""
Named = tuple[str, Box]


@cache
def expected_marks(subject: str, kind: str, object_: str, dx: int, dy: int) -> tuple[tuple[int, Mark], ...]:
    """Marks of a class at an offset of its object's corner, relative to the subject's, each with the distance to what is drawn.

    Empty where the offset is more than `REACH` cells from every drawn one. The marks are those of that offset itself: a rope is as
    long as the gap, and a gap of less than two cells has none.
    """
    found: dict[Mark, int] = {}
    for way in layouts(subject, kind, object_):
        distance, near = min(((max(abs(each.dx - dx), abs(each.dy - dy)), each) for each in way), key=lambda each: each[0])
        if distance <= REACH:
            x, y, w, h = mark_at(subject, kind, object_, (dx, dy), near.left)
            if w * h >= 2:
                found[Mark(kind, x, y, w, h, near.left)] = distance
    return tuple((distance, mark) for mark, distance in found.items())


def unmarked_triple(first: Named, second: Named) -> tuple[bool, str] | None:
    """The class that two boxes show without any mark, and whether the first is its subject; None if none or more than one."""
    shown = [
        (turned, predicate)
        for predicate in UNMARKED
        for turned, a, b in ((False, first, second), (True, second, first))
        if unmarked_holds(predicate, a[1], b[1], b[0])
    ]
    symmetric = [each for each in shown if each[1] in SYMMETRIC]
    if len(shown) > 1 and len(symmetric) == len(shown):
        shown = symmetric[:1]
    return (not shown[0][0], shown[0][1]) if len(shown) == 1 else None


def stray_mark(boxes: Mapping[str, Box], triples: Sequence[Triple], marks: Sequence[Mark]) -> bool:
    """Whether a mark stands where it could as well belong to two objects that are not related by its class."""
    meant = {(frozenset((s, o)), p) for s, p, o in triples}
    for subject, object_ in permutations(boxes, 2):
        (x, y, _, _), (ox, oy, _, _) = boxes[subject], boxes[object_]
        for shown in marks:
            if (frozenset((subject, object_)), shown.kind) in meant or not plausible(subject, shown.kind, object_):
                continue
            for _, mark in expected_marks(subject, shown.kind, object_, ox - x, oy - y):
                if max(abs(mark.x + x - shown.x), abs(mark.y + y - shown.y)) <= REACH:
                    return True
    return False


def reads_as_meant(boxes: Mapping[str, Box], triples: Sequence[Triple]) -> bool:
    """Whether the boxes of all triples of classes without a mark show them, roles included."""
    for s, p, o in triples:
        if straight(s, p, o)[1] in UNMARKED:
            read = unmarked_triple((s, boxes[s]), (o, boxes[o]))
            if read is None or not same((s, read[1], o) if read[0] else (o, read[1], s), (s, p, o)):
                return False
    return True


def same(first: Triple, second: Triple) -> bool:
    """Whether two triples say the same: equal, or the inverse (for a symmetric class itself) with the ends exchanged."""
    s, p, o = second
    return first == second or ((p in INVERSE or p in SYMMETRIC) and first == (o, INVERSE.get(p, p), s))
