"""Who decides what a caption leaves open: the slots of u, or where somebody has told that the objects stand."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sgworld.world.groups import Group, Link, Way, classes_of, ways
from sgworld.world.specification import ACROSS, ANCHOR_X, ANCHOR_Y, CLASS, DISTANCE, DOWN, PLACE_X, PLACE_Y, SUBJECT

U = Sequence[float]
SIDE, FACING = 6.0, 1.0
"""Cells that an object may be farther away to stand on the side, and in the role, that u says; and to face as it is told to."""
ASTRAY = 3.0
"""What each cell counts by which a place is farther from where u points than is as good as that place: one cell, and one more for
each object of a group beyond two, since large groups have few places.
"""


@dataclass(frozen=True)
class Stand:
    """Where an object is told to stand: its middle (x, y), cells, and whether it looks to the right."""

    x: float
    y: float
    right: bool


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


@dataclass(frozen=True)
class Pointing(OfSlots):
    """The wishes of u, but that slots of places point to a place of the image, free or not, and the nearest free one is taken."""

    def pointed(self, free: NDArray[np.bool_], number: int) -> tuple[int, int]:
        """The place that the slots point to."""
        x, y = (min(int(self.u[slot] * count), count - 1) for slot, count in zip(_place_slots(number), free.shape, strict=True))
        return x, y

    def places(self, group: Group, free: NDArray[np.bool_], number: int) -> Iterable[tuple[int, int]]:
        """Free places by distance from the one that the slots point to."""
        return _by_distance(free, *self.pointed(free, number))


@dataclass(frozen=True)
class Near(Pointing):
    """What comes near to how the objects are told to stand, by name, of what u says nearly as well.

    Classes, roles, sides and the neighbourhood of a place are those of u wherever they can be, so that a generator that is taught
    what is nearest to what it tells has no way to tell the same in every noise. The rest follows what is told.
    """

    stands: Mapping[str, Stand] = field(default_factory=dict)

    def ways(self, link: Link, predicate: str) -> Iterable[Way]:
        """By the distance to how the second said is told to stand to the first; `SIDE` and `FACING` count as distance."""
        first, second = self.stands[link.first], self.stands[link.second]
        across, down, leads = (self.u[slot + link.slot] < 0.5 for slot in (ACROSS, DOWN, SUBJECT))

        def key(way: Way) -> float:
            away = ((way.across - second.x + first.x) ** 2 + (way.down - second.y + first.y) ** 2) ** 0.5
            astray = (way.across > 0) != across if abs(way.across) >= abs(way.down) else (way.down > 0) != down
            subject, _, object_ = way.triple
            turned = sum(
                faces is not None and (faces == "right") != self.stands[name].right
                for name, faces in ((subject, way.layout.subject_facing), (object_, way.layout.object_facing))
            )
            return away + SIDE * (astray + (way.leads != leads)) + FACING * turned

        return sorted(ways(link.first, predicate, link.second), key=key)

    def places(self, group: Group, free: NDArray[np.bool_], number: int) -> Iterable[tuple[int, int]]:
        """Free places by distance from where the group's objects are told to stand in the mean.

        Where the first group is led by u, too, the others are not: there are few places left.
        """
        left, top, _, _ = group.extent()
        corners = [
            (self.stands[name].x - box[0] - box[2] / 2 + left, self.stands[name].y - box[1] - box[3] / 2 + top)
            for name, box in group.boxes.items()
        ]
        places = np.argwhere(free)
        costs = np.abs(places - np.mean(corners, axis=0)).sum(1)
        if not number:
            slack = max(1, len(group.boxes) - 1)
            costs += ASTRAY * (np.abs(places - self.pointed(free, number)) - slack).clip(0).sum(1)
        return _in_order(places, costs)
