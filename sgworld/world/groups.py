"""Groups of related objects in a frame of their own: every relation of a group attaches one object to those that stand.

Candidates are tried in the order of somebody's wishes, and the first that everything else fits is taken: nothing is drawn anew.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sgworld.world.classes import Layout, layouts, open_triples, plausible, straight, unmarked_holds
from sgworld.world.geometry import Box, shared_area
from sgworld.world.held_out import held_out
from sgworld.world.reading import reads_as_meant, stray_mark
from sgworld.world.specification import Mark, Triple
from sgworld.world.sprites import GRID, size_of

COVERED = 0.55
"""Largest share of an object's box that others and marks may cover."""
CLOSING = ("left of", "right of", "above", "below")
"""Classes that may hold between two objects which other relations have placed."""
_REACH = 2 * GRID


@dataclass(frozen=True)
class Link:
    """A relation to be drawn: two names as they are said, its class if the caption says it; `slot` numbers its slots of u."""

    first: str
    second: str
    predicate: str | None
    slot: int


@dataclass(frozen=True)
class Group:
    """Boxes by name (cells, relative), facings where a relation fixes them, triples, marks, and names from back to front."""

    boxes: dict[str, Box]
    facing: dict[str, str]
    triples: tuple[Triple, ...] = ()
    marks: tuple[Mark, ...] = ()
    order: tuple[str, ...] = ()

    def extent(self) -> Box:
        """The box around objects and marks."""
        rects = [*self.boxes.values(), *((m.x, m.y, m.w, m.h) for m in self.marks)]
        left, top = min(r[0] for r in rects), min(r[1] for r in rects)
        return left, top, max(r[0] + r[2] for r in rects) - left, max(r[1] + r[3] for r in rects) - top


@cache
def strangers(first: tuple[int, int], second: tuple[int, int]) -> NDArray[np.bool_]:
    """Whether two objects of these sizes that nothing relates may stand so: by offset of the second's corner, from −32 cells on.

    They are apart, and what their boxes show without a mark is nothing but being beside or above one another.
    """
    table = np.zeros((2 * _REACH + 1, 2 * _REACH + 1), bool)
    a = (0, 0, *first)
    for dx in range(-_REACH, _REACH + 1):
        for dy in range(-_REACH, _REACH + 1):
            b = (dx, dy, *second)
            apart = dx >= first[0] + 1 or -dx >= second[0] + 1 or dy >= first[1] + 1 or -dy >= second[1] + 1
            table[dx + _REACH, dy + _REACH] = apart and not unmarked_holds("around/near", a, b)
    return table


@cache
def disjoint(first: tuple[int, int], second: tuple[int, int]) -> NDArray[np.bool_]:
    """Whether two boxes of these sizes share no cell, by offset of the second's corner, from −32 cells on."""
    offsets = np.arange(-_REACH, _REACH + 1)
    across, down = ((offsets >= a) | (-offsets >= b) for a, b in zip(first, second, strict=True))
    return across[:, None] | down[None, :]


def fits(table: NDArray[np.bool_], first: Box, second: Box) -> bool:
    """The entry of a table by offset for two boxes."""
    return bool(table[second[0] - first[0] + _REACH, second[1] - first[1] + _REACH])


def _cells(a: Box, b: Box) -> list[tuple[int, int]]:
    """Cells that two boxes share."""
    columns = range(max(a[0], b[0]), min(a[0] + a[2], b[0] + b[2]))
    return [(x, y) for x in columns for y in range(max(a[1], b[1]), min(a[1] + a[3], b[1] + b[3]))]


def _visible(group: Group) -> bool:
    """Whether no object is covered by more than `COVERED`."""
    marks = [(m.x, m.y, m.w, m.h) for m in group.marks]
    for place, name in enumerate(group.order):
        box = group.boxes[name]
        above = [group.boxes[other] for other in group.order[place + 1 :]] + marks
        over = [other for other in above if shared_area(box, other)]
        if over and len(set(chain.from_iterable(_cells(box, other) for other in over))) > COVERED * box[2] * box[3]:
            return False
    return True


def _attached(group: Group, triple: Triple, layout: Layout) -> Group | None:
    """The group with one more triple, one or both of whose ends are new; None where it does not fit."""
    subject, _, object_ = triple
    if subject in group.boxes or not group.boxes:
        sx, sy = group.boxes[subject][:2] if group.boxes else (0, 0)
    else:
        ox, oy = group.boxes[object_][:2]
        sx, sy = ox - layout.dx, oy - layout.dy
    ends: dict[str, Box] = {
        subject: (sx, sy, *size_of(subject)), object_: (sx + layout.dx, sy + layout.dy, *size_of(object_)),
    }  # fmt: skip
    facing = dict(group.facing)
    for name, way in ((subject, layout.subject_facing), (object_, layout.object_facing)):
        if way is not None and facing.setdefault(name, way) != way:
            return None
    others = [(name, box) for name, box in group.boxes.items() if name not in ends]
    for new in ends.keys() - group.boxes.keys():
        if group.boxes and not all(fits(strangers(box[2:], size_of(new)), box, ends[new]) for _, box in others):
            return None
        for mark in group.marks:
            if shared_area((mark.x, mark.y, mark.w, mark.h), ends[new]):
                return None
    marks = group.marks
    if layout.mark is not None:
        x, y, w, h = layout.mark
        mark = Mark(triple[1], sx + x, sy + y, w, h, layout.left)
        rect = (mark.x, mark.y, w, h)
        if any(shared_area(rect, box) for _, box in others) or any(shared_area(rect, (m.x, m.y, m.w, m.h)) for m in marks):
            return None
        marks = (*marks, mark)
    front, back = (subject, object_) if layout.front == "subject" else (object_, subject)
    order = list(group.order) or [back]
    if front not in order:
        order.append(front)
    if back not in order:
        order.insert(order.index(front), back)
    elif order.index(back) > order.index(front):
        return None
    made = Group({**group.boxes, **ends}, facing, (*group.triples, triple), marks, tuple(order))
    return made if max(made.extent()[2:]) <= GRID and _visible(made) else None


def _closed(group: Group, triple: Triple) -> Group | None:
    """The group with a triple between two objects that stand already, if they stand so."""
    s, p, o = straight(*triple)
    if triple[1] not in CLOSING or not unmarked_holds(p, group.boxes[s], group.boxes[o]):
        return None
    return Group(group.boxes, group.facing, (*group.triples, triple), group.marks, group.order)


@cache
def classes_of(first: str, second: str) -> tuple[str, ...]:
    """All classes that a pair can stand in, in the order in which a slot of u goes through them."""
    return tuple(dict.fromkeys(p for p, _ in open_triples(first, second)))


@dataclass(frozen=True)
class Way:
    """One way to draw a class between two names: the triple, its layout, how far the middle of the second said lies from that of
    the first (cells), whether the subject is the left one (where they are farther apart down: the upper one), its number among
    those on its side, and their count.
    """

    triple: Triple
    layout: Layout
    across: float
    down: float
    leads: bool
    number: int
    count: int


@cache
def ways(first: str, predicate: str, second: str) -> tuple[Way, ...]:
    """All ways to draw a class between two names, whoever is the subject."""
    found = []
    for s, o in ((first, second), (second, first)):
        if not plausible(s, predicate, o):
            continue
        for side in layouts(s, predicate, o):
            for number, layout in enumerate(side):
                across, down = (
                    offset + (theirs - mine) / 2
                    for offset, mine, theirs in zip((layout.dx, layout.dy), size_of(s), size_of(o), strict=True)
                )
                leads, sign = (across if abs(across) >= abs(down) else down) > 0, 1 if s == first else -1
                found.append(Way((s, predicate, o), layout, sign * across, sign * down, leads, number, len(side)))
    return tuple(found)


class Wishes(Protocol):
    """In which order classes, layouts and places are tried where a caption leaves them open."""

    @property
    def withheld(self) -> bool:
        """Whether held-out triples and combinations are kept out of what the caption leaves open."""

    def classes(self, link: Link) -> Iterable[str]:
        """Classes that a link whose class the caption does not say may become."""

    def ways(self, link: Link, predicate: str) -> Iterable[Way]:
        """All of `ways` of a link's two names."""

    def places(self, group: Group, free: NDArray[np.bool_], number: int) -> Iterable[tuple[int, int]]:
        """Where `free` `[x, y]` lets the corner of a group's extent be; `number` groups stand already."""


def grown(group: Group, links: Sequence[Link], wishes: Wishes) -> Iterator[Group]:
    """All ways to draw `links`, which hang together and are in an order of growth, as `wishes` order them."""
    if not links:
        if reads_as_meant(group.boxes, group.triples) and not stray_mark(group.boxes, group.triples, group.marks):
            yield group
        return
    link, rest = links[0], links[1:]
    for predicate in wishes.classes(link) if link.predicate is None else (link.predicate,):
        for way in wishes.ways(link, predicate):
            if link.predicate is None and wishes.withheld and held_out((*group.triples, way.triple)):
                continue
            if link.first in group.boxes and link.second in group.boxes:
                made = _closed(group, way.triple)
            else:
                made = _attached(group, way.triple, way.layout)
            if made is not None:
                yield from grown(made, rest, wishes)
