"""Scenes as a function of a caption and a vector u of `SLOTS` uniforms; see the slots in `specification`.

Slots of choices are inverse distribution functions of equal shares, slots of places grow with x or y over the places that are free,
each with equal weight. So for one u captions that differ little have scenes that do, and near u mostly near scenes. Where a
caption leaves a class open, held-out triples and combinations are not meant.
"""

from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from sgpipe.errors import DataError
from sgworld.world.geometry import Box
from sgworld.world.groups import CLOSING, Group, Link, Wishes, disjoint, grown, strangers
from sgworld.world.held_out import held_out
from sgworld.world.reading import stray_mark
from sgworld.world.specification import BACKGROUND, JOIN, SLOTS, Caption, Mark, Placed, Scene
from sgworld.world.sprites import BACKGROUNDS, GRID, size_of
from sgworld.world.wishes import OfSlots, U, nearest_first

UNRELATED = 0.2
"""Chance of the third and the fourth object of a neutral caption to be related to nothing that stands."""
TRIES = 4_000
"""Arrangements of groups that are looked at before a caption counts as one that cannot be drawn."""
_REACH = 2 * GRID


def neutral_links(names: Sequence[str], u: U) -> list[Link]:
    """Which objects of a neutral caption relate: the first two said, then each further one to one before it, or to none."""
    links = [Link(names[0], names[1], None, 0)]
    for number, name in enumerate(names[2:]):
        if u[JOIN + number] >= UNRELATED:
            share = (u[JOIN + number] - UNRELATED) / (1 - UNRELATED)
            links.append(Link(names[min(number + 1, int(share * (number + 2)))], name, None, number + 1))
    return links


def _components(names: Sequence[str], links: Sequence[Link]) -> list[tuple[list[str], list[Link]]]:
    """Groups of related objects, the first link's first; links of each in an order of growth, closing ones as soon as they can."""
    left, found = list(links), []
    while left:
        inside, grown_by = {left[0].first, left[0].second}, [left.pop(0)]
        while True:
            ends = [len({link.first, link.second} & inside) for link in left]
            if not any(ends):
                break
            link = left.pop(ends.index(2) if 2 in ends else ends.index(1))
            inside |= {link.first, link.second}
            grown_by.append(link)
        found.append(([name for name in names if name in inside], grown_by))
    related = {name for inside, _ in found for name in inside}
    return found + [([name], []) for name in names if name not in related]


def _joined(first: str, second: str, links: Sequence[Link]) -> bool:
    """Whether links lead from one name to the other."""
    reached = {first}
    for _ in links:
        reached |= {name for link in links if {link.first, link.second} & reached for name in (link.first, link.second)}
    return second in reached


def _closing_last(links: list[Link]) -> list[Link]:
    """The links, as said, but one that closes a circle comes last: the last said of those that can be found to hold afterwards."""
    for link in reversed(links):
        others = [each for each in links if each is not link]
        if link.predicate in CLOSING and _joined(link.first, link.second, others):
            return [*others, link]
    return links


def _free(group: Group, standing: Sequence[Group]) -> NDArray[np.bool_]:
    """Where a group may go beside others `[x, y]`: shifts of its extent's corner over the grid."""
    left, top, width, height = group.extent()
    free = np.ones((GRID - width + 1, GRID - height + 1), bool)
    rects = [((m.x, m.y, m.w, m.h), True) for m in group.marks] + [(box, False) for box in group.boxes.values()]
    for other in standing:
        for theirs, their_mark in [((m.x, m.y, m.w, m.h), True) for m in other.marks] + [(b, False) for b in other.boxes.values()]:
            for mine, my_mark in rects:
                rule = disjoint if my_mark or their_mark else strangers
                x, y = mine[0] - left - theirs[0] + _REACH, mine[1] - top - theirs[1] + _REACH
                free &= rule(theirs[2:], mine[2:])[x : x + free.shape[0], y : y + free.shape[1]]
    return free


def _moved(group: Group, x: int, y: int) -> Group:
    """The group with its extent's corner at (x, y)."""
    left, top, _, _ = group.extent()
    dx, dy = x - left, y - top
    boxes: dict[str, Box] = {name: (b[0] + dx, b[1] + dy, b[2], b[3]) for name, b in group.boxes.items()}
    marks = tuple(Mark(m.kind, m.x + dx, m.y + dy, m.w, m.h, m.mirrored) for m in group.marks)
    return Group(boxes, group.facing, group.triples, marks, group.order)


def _arranged(
    standing: tuple[Group, ...], parts: Sequence[tuple[list[str], list[Link]]], wishes: Wishes
) -> Iterator[tuple[Group, ...]]:
    """All ways to place what is left beside what stands, as `wishes` order them."""
    if not parts:
        yield standing
        return
    (names, links), rest = parts[0], parts[1:]
    alone = Group({names[0]: (0, 0, *size_of(names[0]))}, {}, order=(names[0],))
    for group in grown(Group({}, {}), links, wishes) if links else (alone,):
        for x, y in wishes.places(group, _free(group, standing), len(standing)):
            yield from _arranged((*standing, _moved(group, x, y)), rest, wishes)


def arrangements(caption: Caption, u: U, wishes: Wishes) -> Iterator[tuple[Group, ...]]:
    """Groups of a caption in which it can be shown, best first by `wishes`; which objects of a neutral one relate, u says.

    Raises `DataError` for a caption whose relations fit no image together.
    """
    links = [Link(a, b, p, slot) for slot, (a, p, b) in enumerate(caption.relations)] or neutral_links(caption.names, u)
    parts, found = _components(caption.names, _closing_last(links)), False
    for groups in islice(_arranged((), parts, wishes), TRIES):
        kept = caption.relations or not wishes.withheld or not held_out(triple for group in groups for triple in group.triples)
        if kept and (len(groups) == 1 or not _strays(groups)):
            found = True
            yield groups
    if not found:
        said = "; ".join(" ".join(each) for each in caption.relations)
        raise DataError(f"caption ({said or ', '.join(caption.names)}): its relations do not fit one image together")


def compose(caption: Caption, u: Sequence[float] | NDArray[np.floating]) -> Scene:
    """The scene that a caption and u `[31]`, values in 0…1, mean.

    Raises `DataError` for a vector of another length, and for a caption whose relations fit no image together.
    """
    values = [float(value) for value in u]
    if len(values) != SLOTS or not all(0 <= value <= 1 for value in values):
        raise DataError(f"u: got {len(values)} values; {SLOTS} between 0 and 1 are needed")
    return scene_of(caption.names, next(arrangements(caption, values, OfSlots(values))), values)


def _strays(groups: Sequence[Group]) -> bool:
    """Whether a mark of one group could belong to an object of another."""
    boxes = {name: box for group in groups for name, box in group.boxes.items()}
    return stray_mark(boxes, [t for group in groups for t in group.triples], [m for group in groups for m in group.marks])


def scene_of(names: Sequence[str], groups: Sequence[Group], u: U) -> Scene:
    """Groups as a scene; u says the background."""
    index = {name: number for number, name in enumerate(names)}
    boxes = {name: box for group in groups for name, box in group.boxes.items()}
    facing = {name: way for group in groups for name, way in group.facing.items()}
    return Scene(
        nearest_first(u[BACKGROUND], len(BACKGROUNDS))[0],
        tuple(Placed(name, *boxes[name], facing.get(name, "right")) for name in names),
        tuple((index[s], p, index[o]) for group in groups for s, p, o in group.triples),
        tuple(index[name] for group in groups for name in group.order),
        tuple(mark for group in groups for mark in group.marks),
    )
