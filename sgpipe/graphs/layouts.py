"""Where a graph's objects stand: boxes proposed from its triples alone, and the layout image that shows boxes to a generator.

The proposal is a rule, not fitted to any image: each class says how far apart the centres of its subject and object are, in
units of the boxes' own sizes, and the centres are the least-squares solution of all triples together.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sgpipe.graphs.scene_graph import Box, SceneGraph, Triple
from sgpipe.relations.predicates import INVERSE, PREDICATE_INDEX, RELATIONS, BoxRule


class Place(NamedTuple):
    """A subject as seen from its object: the offset of the centres in halves of the summed sizes, and the two's sizes in units of
    `SIDE`; on which side it stands where `either` is true depends on the hash of the two names."""

    x: float
    y: float
    subject: float = 1.0
    object: float = 1.0
    either: bool = False


SIDE: Final = 0.33
"""Of a box whose triples say nothing of its size, in fractions of the image."""
MARGIN: Final = 0.06
"""Left free on every side of the image."""
_BESIDE: Final = Place(0.9, 0.0, object=0.7, either=True)
_BY_RULE: Final[Mapping[BoxRule, Place]] = {
    "left of": Place(-1.3, 0.0), "right of": Place(1.3, 0.0), "above": Place(0.0, -1.3), "below": Place(0.0, 1.3),
    "inside": Place(0.0, 0.0, subject=0.5), "upon": Place(0.0, -0.9), "hanging": Place(0.0, 0.9),
    "near": Place(1.1, 0.0, either=True), "touching": Place(0.95, 0.0, either=True),
}  # fmt: skip
_BY_NAME: Final = {
    "behind": Place(0.3, -0.6, subject=0.8), "wearing": Place(0.0, 0.2, object=0.5), "looking at": Place(1.3, 0.0, either=True),
}  # fmt: skip


def place_of(predicate: str) -> Place:
    """By the class's rule of boxes, else by its name; any other subject stands beside its object."""
    relation = RELATIONS.get(predicate)
    rule = None if relation is None else relation.box_rule
    return _BY_RULE[rule] if rule else _BY_NAME.get(predicate, _BESIDE)


def _first_of_inverses(triple: Triple) -> Triple:
    """The triple, or what it says seen from the other end, by the class that comes first in the list."""
    s, predicate, o = triple
    inverse = INVERSE.get(predicate)
    return triple if inverse is None or PREDICATE_INDEX[inverse] > PREDICATE_INDEX[predicate] else (o, inverse, s)


def _digest(*words: str) -> bytes:
    return hashlib.sha256("\0".join(words).encode()).digest()


def proposed(graph: SceneGraph) -> SceneGraph:
    """The graph with a box for every object of a triple that has none; boxes that are given stay where they are.

    The same graph gets the same boxes. Objects of no triple get none: nothing says where they are. Triples that contradict one
    another meet halfway.
    """
    given: list[Box | None] = list(graph.boxes) or [None] * len(graph.objects)
    free = sorted({index for s, _, o in graph.triples for index in (s, o) if given[index] is None})
    if not free:
        return replace(graph, boxes=tuple(given))
    triples = [_first_of_inverses(triple) for triple in graph.triples]
    sizes = np.array([[SIDE, SIDE] if box is None else box[2:] for box in given])
    for s, predicate, o in triples:
        for index, size in ((s, place_of(predicate).subject), (o, place_of(predicate).object)):
            if given[index] is None:
                sizes[index] = np.minimum(sizes[index], SIDE * size)
    centres = np.array([[0.0, 0.0] if box is None else np.add(box[:2], np.divide(box[2:], 2)) for box in given])
    rows, wanted = np.zeros((len(graph.triples), len(given))), np.zeros((len(graph.triples), 2))
    for row, (s, predicate, o) in enumerate(triples):
        place, names = place_of(predicate), (graph.objects[s], graph.objects[o])
        side = -1.0 if place.either and _digest(*names)[0] % 2 else 1.0
        rows[row, s], rows[row, o] = 1.0, -1.0
        wanted[row] = np.multiply((side * place.x, place.y), (sizes[s] + sizes[o]) / 2)
    centres[free] = np.linalg.lstsq(rows[:, free], wanted - rows @ centres, rcond=None)[0]
    if len(free) == len({index for s, _, o in graph.triples for index in (s, o)}):
        _spread(graph, free, centres, sizes)
        _fit(free, centres, sizes)
    low = np.clip(centres - sizes / 2, 0.0, np.maximum(1.0 - sizes, 0.0))
    boxes = list(given)
    for index in free:
        x, y, w, h = map(float, (*low[index], *sizes[index]))
        boxes[index] = (x, y, w, h)
    return replace(graph, boxes=tuple(boxes))


def _spread(graph: SceneGraph, free: list[int], centres: NDArray[np.float64], sizes: NDArray[np.float64]) -> None:
    """Move parts of the graph that share no object side by side, in the order of their first objects."""
    part = {index: index for index in free}
    for _ in free:
        for s, _, o in graph.triples:
            part[s] = part[o] = min(part[s], part[o])
    edge = 0.0
    for first in sorted(set(part.values())):
        own = [index for index in free if part[index] == first]
        centres[own, 0] += edge - (centres[own, 0] - sizes[own, 0] / 2).min()
        edge = (centres[own, 0] + sizes[own, 0] / 2).max() + MARGIN


def _fit(free: list[int], centres: NDArray[np.float64], sizes: NDArray[np.float64]) -> None:
    """Move the boxes to the middle of the image, and shrink all where they exceed it less its margins."""
    low, high = (centres - sizes / 2)[free].min(axis=0), (centres + sizes / 2)[free].max(axis=0)
    scale = min(1.0, float(((1 - 2 * MARGIN) / (high - low)).min()))
    centres[free] = 0.5 + (centres[free] - (low + high) / 2) * scale
    sizes[free] *= scale


def colours(name: str) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Fill and frame, 0–255, of boxes of this name: bytes of its hash from 48 up, so that no box is the background."""
    r, g, b, *frame = (48 + byte * 207 // 255 for byte in _digest(name)[:6])
    return (r, g, b), (frame[0], frame[1], frame[2])


def layout_image(graph: SceneGraph, side: int, arrows: bool = False) -> NDArray[np.uint8]:
    """`[side, side, 3]`, 0–255: on black the boxes that the graph has, each in the two colours of its object's name.

    Larger boxes are behind smaller ones. `arrows` adds one from subject to object in the colour of its predicate, where both have a
    box. A graph without boxes gives a black image.
    """
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (side, side))
    draw = ImageDraw.Draw(image)
    boxes = [(index, box) for index, box in enumerate(graph.boxes) if box is not None]
    for index, (x, y, w, h) in sorted(boxes, key=lambda each: (-each[1][2] * each[1][3], each[0])):
        (left, top), (right, bottom) = ((round(v * side) for v in pair) for pair in ((x, y), (x + w, y + h)))
        right, bottom = max(right - 1, left), max(bottom - 1, top)
        fill, frame = colours(graph.objects[index])
        draw.rectangle((left, top, right, bottom), fill, frame, max(1, min(right - left, bottom - top) // 8))
    placed = dict(boxes)
    for s, predicate, o in graph.triples if arrows else ():
        if s in placed and o in placed:
            ends = np.array([(x + w / 2, y + h / 2) for x, y, w, h in (placed[s], placed[o])]) * side
            _arrow(draw, ends, side, colours(predicate)[0])
    return np.asarray(image)


def _arrow(draw: Any, ends: NDArray[np.float64], side: int, colour: tuple[int, int, int]) -> None:
    """A line with a head at its end, in pixels."""
    width, way = max(1, side // 64), ends[1] - ends[0]
    along = way / max(float(np.hypot(*way)), 1e-9) * side / 16
    across = np.array([-along[1], along[0]]) / 2
    draw.line([*ends.ravel()], colour, width)
    draw.polygon([*ends[1], *(ends[1] - along + across), *(ends[1] - along - across)], colour)
