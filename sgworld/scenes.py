"""Scenes of the world: pairs placed by rule in cells of 64 px, and their pixels."""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from sgpipe.errors import DataError
from sgworld.pen import Colour, Pen, Point
from sgworld.pictograms import PICTOGRAMS, sprite
from sgworld.rules import RULES, Layout, Line, admissible

CELL = 64
GRID = 4
"""Corners of objects are multiples of this many pixels, the stride of the embedded VAE: an object has few looks in latents."""
INK: Colour = (95, 95, 102)
BACKGROUNDS: tuple[Colour, ...] = ((244, 241, 232), (226, 238, 246), (238, 230, 242), (229, 242, 228))


@dataclass(frozen=True)
class Placed:
    """An object and its box, pixels of the scene."""

    name: str
    x: int
    y: int
    w: int
    h: int
    facing: str


@dataclass(frozen=True)
class Scene:
    """Objects, what relates them, in which order they are painted, and the lines between them."""

    width: int
    height: int
    background: int
    objects: tuple[Placed, ...]
    relations: tuple[tuple[int, str, int], ...]
    order: tuple[int, ...]
    lines: tuple[Line, ...] = ()
    dots: tuple[Point, ...] = ()


@cache
def _pairs(predicate: str) -> list[tuple[str, str]]:
    return [pair for pair in admissible(predicate) if fits(pair[0], predicate, pair[1])]


@cache
def fits(subject: str, predicate: str, object_: str) -> bool:
    """Whether the two objects of a triple lie inside a cell."""
    corners = _on_grid(RULES[predicate](subject, object_))
    return max(_extent(corners, subject, object_)[2:]) <= CELL


def _to_grid(value: float) -> int:
    return GRID * round(value / GRID)


def _on_grid(layout: Layout) -> tuple[tuple[int, int], tuple[int, int]]:
    """Top-left corners of subject and object, multiples of `GRID` pixels, the upper left one of both at 0."""
    dx, dy = (_to_grid(o - s) for s, o in zip(layout.subject, layout.object, strict=True))
    return (max(0, -dx), max(0, -dy)), (max(0, dx), max(0, dy))


def _extent(corners: tuple[tuple[int, int], tuple[int, int]], subject: str, object_: str) -> tuple[int, int, int, int]:
    (sx, sy), (ox, oy) = corners
    (sw, sh), (ow, oh) = PICTOGRAMS[subject].size, PICTOGRAMS[object_].size
    return min(sx, ox), min(sy, oy), max(sx + sw, ox + ow), max(sy + sh, oy + oh)


def draw_triple(rng: np.random.Generator, predicate: str) -> tuple[str, str, str]:
    """A triple of the class, uniform over the ordered pairs that its rule can draw."""
    pairs = _pairs(predicate)
    subject, object_ = pairs[int(rng.integers(len(pairs)))]
    return subject, predicate, object_


def _scene(subject: str, predicate: str, object_: str, background: int) -> Scene:
    """The pair in the middle of a cell, rounded to the grid."""
    if predicate not in RULES or not fits(subject, predicate, object_):
        raise DataError(f"({subject}, {predicate}, {object_}) cannot be drawn: no rule, or too large for a cell of {CELL} px")
    layout = RULES[predicate](subject, object_)
    corners = _on_grid(layout)
    shift = [_middle(size) for size in _extent(corners, subject, object_)[2:]]
    placed = [
        Placed(name, corner[0] + shift[0], corner[1] + shift[1], *PICTOGRAMS[name].size, "right")
        for name, corner in zip((subject, object_), corners, strict=True)
    ]
    dx, dy = placed[1].x - layout.object[0], placed[1].y - layout.object[1]
    return Scene(
        CELL, CELL, background, tuple(placed), ((0, predicate, 1),),
        (1, 0) if layout.front == "subject" else (0, 1),
        tuple(tuple((x + dx, y + dy) for x, y in line) for line in layout.lines),
        tuple((x + dx, y + dy) for x, y in layout.dots),
    )  # fmt: skip


def pair_scene(rng: np.random.Generator, subject: str, predicate: str, object_: str) -> Scene:
    """One cell that shows a triple, its background by chance. Object 0 is the subject, object 1 the object."""
    return _scene(subject, predicate, object_, int(rng.integers(len(BACKGROUNDS))))


def every_scene(subject: str, predicate: str, object_: str) -> list[Scene]:
    """All scenes that `pair_scene` can make of a triple, each once."""
    return [_scene(subject, predicate, object_, background) for background in range(len(BACKGROUNDS))]


def every_triple(predicate: str) -> list[tuple[str, str, str]]:
    """All triples of a class that its rule can draw."""
    return [(subject, predicate, object_) for subject, object_ in _pairs(predicate)]


def _middle(size: int) -> int:
    """Where something `size` px long begins to stand in the middle of the cell, rounded down to the grid."""
    return GRID * ((CELL - size) // 2 // GRID)


def lone_scene(rng: np.random.Generator, name: str) -> Scene:
    """One cell with a single object in the middle."""
    w, h = PICTOGRAMS[name].size
    x, y = _middle(w), _middle(h)
    facing = "left" if rng.random() < 0.5 else "right"
    return Scene(CELL, CELL, int(rng.integers(len(BACKGROUNDS))), (Placed(name, x, y, w, h, facing),), (), (0,))


def beside(scenes: list[Scene]) -> Scene:
    """Cells joined from left to right on the first one's background."""
    objects: list[Placed] = []
    relations: list[tuple[int, str, int]] = []
    order: list[int] = []
    lines: list[Line] = []
    dots: list[Point] = []
    for i, scene in enumerate(scenes):
        first, dx = len(objects), i * CELL
        objects += [Placed(o.name, o.x + dx, o.y, o.w, o.h, o.facing) for o in scene.objects]
        relations += [(s + first, predicate, o + first) for s, predicate, o in scene.relations]
        order += [index + first for index in scene.order]
        lines += [tuple((x + dx, y) for x, y in line) for line in scene.lines]
        dots += [(x + dx, y) for x, y in scene.dots]
    return Scene(
        CELL * len(scenes), CELL, scenes[0].background, tuple(objects), tuple(relations), tuple(order), tuple(lines), tuple(dots)
    )


def _paste(canvas: NDArray[np.uint8], pixels: NDArray[np.uint8], x: int, y: int) -> None:
    h, w = pixels.shape[:2]
    under = canvas[y : y + h, x : x + w]
    alpha = pixels[..., 3:].astype(np.uint16)
    under[...] = (pixels[..., :3] * alpha + under * (255 - alpha) + 127) // 255


def _ink(canvas: NDArray[np.uint8], points: Line, dotted: bool) -> None:
    """Draw one grey line or dot, on a small canvas of its own."""
    height, width = canvas.shape[:2]
    left, top = (max(0, int(min(values)) - 2) for values in zip(*points, strict=True))
    right, bottom = (int(max(values)) + 3 for values in zip(*points, strict=True))
    right, bottom = min(right, width), min(bottom, height)
    if right <= left or bottom <= top:
        return
    pen = Pen(right - left, bottom - top)
    moved = [(x - left, y - top) for x, y in points]
    if dotted:
        pen.oval(moved[0][0] - 1.1, moved[0][1] - 1.1, 2.2, 2.2, INK)
    else:
        pen.line(moved, 1.8, INK)
    _paste(canvas, pen.pixels(), left, top)


def render(scene: Scene) -> NDArray[np.uint8]:
    """Pixels `[height, width, 3]`, 0–255."""
    canvas = np.empty((scene.height, scene.width, 3), np.uint8)
    canvas[...] = BACKGROUNDS[scene.background]
    for index in scene.order:
        placed = scene.objects[index]
        _paste(canvas, sprite(placed.name, placed.facing), placed.x, placed.y)
    for points, dotted in [*((line, False) for line in scene.lines), *(((dot,), True) for dot in scene.dots)]:
        _ink(canvas, points, dotted)
    return canvas
