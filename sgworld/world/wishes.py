"""Who decides what a caption leaves open: the slots of u, or where somebody has told that the objects stand."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from numpy.typing import NDArray

from sgworld.world.groups import Group, Link, Way, classes_of, ways
from sgworld.world.specification import ACROSS, ANCHOR_X, ANCHOR_Y, CLASS, DISTANCE, DOWN, PLACE_X, PLACE_Y, SUBJECT
from sgworld.world.sprites import GRID

U = Sequence[float]
SIDE, TURNED = 6.0, 1.0
"""Cells that an object may be farther away to stand on the side, and in the role, that u says; and, above or below, to look so."""
UNUSUAL, INSIDE = 3.0, 8.0
"""Cells that an object may be farther away to stand in line and as near or far as u says; and, by axis, a further group to stand
along an edge of the image.
"""
MARGIN = 1
"""Cells between objects and the edge of the image that they stand along."""


@dataclass(frozen=True)
class Stand:
    """Where an object is told to stand: its middle (x, y), cells."""

    x: float
    y: float


def nearest_first(u: float, count: int) -> list[int]:
    """Numbers below `count`: the one of equal shares that u falls into, then its neighbours by distance."""
    chosen = min(count - 1, int(u * count))
    return sorted(range(count), key=lambda index: abs(index - chosen + 0.1))


def _place_slots(number: int) -> tuple[int, int]:
    """Slots of the place of a group, by how many stand already."""
    return (PLACE_X + number - 1, PLACE_Y + number - 1) if number else (ANCHOR_X, ANCHOR_Y)


def _in_order(places: NDArray[np.int64], costs: NDArray[np.float64]) -> Iterable[tuple[int, int]]:
    for place in places[np.argsort(costs, kind="stable")]:
        yield int(place[0]), int(place[1])


def _by_distance(free: NDArray[np.bool_], x: int, y: int) -> Iterable[tuple[int, int]]:
    places = np.argwhere(free)
    return _in_order(places, np.abs(places - (x, y)).sum(1))


@dataclass(frozen=True)
class OfSlots:
    """The wishes of u `[31]`, each slot for itself; held-out triples and combinations are kept out.

    Of places the one of its two slots comes first, columns by their number of free places, then rows; others by distance from it.
    """

    u: U
    withheld: bool = True

    def classes(self, link: Link) -> Iterable[str]:
        """The class of the link's slot, then its neighbours among all that the names can stand in."""
        classes = classes_of(link.first, link.second)
        return (classes[i] for i in nearest_first(self.u[CLASS + link.slot], len(classes)))

    def ways(self, link: Link, predicate: str) -> Iterable[Way]:
        """By the side along the longer axis, who is the subject, the other side, the distance."""
        across, down, leads, distance = (self.u[slot + link.slot] for slot in (ACROSS, DOWN, SUBJECT, DISTANCE))

        def key(way: Way) -> tuple[bool, bool, bool, float]:
            sides = ((way.across > 0) != (across < 0.5), (way.down > 0) != (down < 0.5))
            wide = abs(way.across) >= abs(way.down)
            off = abs(way.number - min(way.count - 1, int(distance * way.count)) + 0.1)
            return sides[not wide], way.leads != (leads < 0.5), sides[wide], off

        return sorted(ways(link.first, predicate, link.second), key=key)

    def places(self, group: Group, free: NDArray[np.bool_], number: int) -> Iterable[tuple[int, int]]:
        """All free places, each with equal weight."""
        counts = free.sum(1)
        if not counts.any():
            return ()
        u_x, u_y = (self.u[slot] for slot in _place_slots(number))
        total = np.cumsum(counts)
        x = int(np.searchsorted(total, min(int(u_x * total[-1]), total[-1] - 1), side="right"))
        rows = np.flatnonzero(free[x])
        return _by_distance(free, x, int(rows[min(len(rows) - 1, int(u_y * len(rows)))]))


@cache
def usual(first: str, predicate: str, second: str, far: bool) -> frozenset[Way]:
    """Of each side, role and mirror image the way that is most in line, and of those the nearest, or the farthest where `far`."""
    chosen: dict[tuple[bool, ...], tuple[tuple[float, float, float], Way]] = {}
    for way in ways(first, predicate, second):
        wide = abs(way.across) >= abs(way.down)
        along, off = (way.across, way.down) if wide else (way.down, way.across)
        key = (abs(off), -abs(along) if far else abs(along), off)
        side = (wide, along > 0, way.leads, way.layout.left)
        if side not in chosen or key < chosen[side][0]:
            chosen[side] = key, way
    return frozenset(way for _, way in chosen.values())


@dataclass(frozen=True)
class Sparse(OfSlots):
    """The wishes of u as far as a generator shall read them: few places, far from one another.

    Whoever tells a place with an error has told which is meant all the same, if no other is near. So distances are the least or the
    greatest, objects in line, and groups in corners of the image, wherever they can be.

    `stands`: where somebody tells that objects stand, by name. Then it is what comes nearest to that of what u says nearly as well.
    Classes, roles, sides, distances and the corner of the first group are u's even so, that a generator that is taught what is
    nearest to what it tells has no way to tell the same in every noise; the corners of further groups follow what is told.
    """

    stands: Mapping[str, Stand] = field(default_factory=dict)

    def ways(self, link: Link, predicate: str) -> Iterable[Way]:
        """By how far the second said is told to stand from where a way has it; `SIDE`, `TURNED` and `UNUSUAL` count as cells."""
        across, down, leads, near = (self.u[slot + link.slot] < 0.5 for slot in (ACROSS, DOWN, SUBJECT, DISTANCE))
        chosen = usual(link.first, predicate, link.second, not near)
        told = [self.stands[name] for name in (link.first, link.second)] if self.stands else None

        def key(way: Way) -> float:
            wide = abs(way.across) >= abs(way.down)
            astray = (way.across > 0) != across if wide else (way.down > 0) != down
            cost = SIDE * (astray + (way.leads != leads)) + UNUSUAL * (way not in chosen)
            if not wide:
                cost += TURNED * (way.layout.left == across)
            if told is None:
                return cost
            first, second = told
            return cost + ((way.across - second.x + first.x) ** 2 + (way.down - second.y + first.y) ** 2) ** 0.5

        return sorted(ways(link.first, predicate, link.second), key=key)

    def places(self, group: Group, free: NDArray[np.bool_], number: int) -> Iterable[tuple[int, int]]:
        """By distance from the corner of the image that u says; where somebody tells, further groups by distance from where their
        objects are told to stand in the mean, `INSIDE` more for each axis along which they keep no `MARGIN`.
        """
        left, top, _, _ = group.extent()
        boxes = np.array(list(group.boxes.values())) - (left, top, 0, 0)
        least, most = MARGIN - boxes[:, :2].min(0), GRID - MARGIN - (boxes[:, :2] + boxes[:, 2:]).max(0)
        places = np.argwhere(free)
        if not number or not self.stands:
            corner = np.where([self.u[slot] < 0.5 for slot in _place_slots(number)], least, most)
            return _in_order(places, np.abs(places - corner).sum(1))
        told = [(self.stands[name].x, self.stands[name].y) for name in group.boxes]
        wanted = (np.array(told) - boxes[:, 2:] / 2 - boxes[:, :2]).mean(0)
        inside = ((places != least) & (places != most)).sum(1)
        return _in_order(places, np.abs(places - wanted).sum(1) + INSIDE * inside)
