"""Scenes of the world: pairs placed by rule in cells of 64 px, and their pixels."""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from sgpipe.errors import DataError
from sgpipe.miniature.pen import Colour, Pen, Point
from sgpipe.miniature.pictograms import PICTOGRAMS, sprite
from sgpipe.miniature.rules import RULES, Layout, Line, admissible

CELL = 64
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
    """Whether the largest of 12 layouts of a triple stays inside a cell with a margin of 1 px."""
    extents = [
        _extent(RULES[predicate](np.random.default_rng(i), subject, object_), subject, object_)
        for i in range(12)
    ]
    return all(right - left <= CELL - 2 and bottom - top <= CELL - 2 for left, top, right, bottom in extents)


def _extent(layout: Layout, subject: str, object_: str) -> tuple[float, float, float, float]:
    (sx, sy), (ox, oy) = layout.subject, layout.object
    (sw, sh), (ow, oh) = PICTOGRAMS[subject].size, PICTOGRAMS[object_].size
    return min(sx, ox), min(sy, oy), max(sx + sw, ox + ow), max(sy + sh, oy + oh)


def draw_triple(rng: np.random.Generator, predicate: str) -> tuple[str, str, str]:
    """A triple of the class, uniform over the ordered pairs that its rule can draw."""
    pairs = _pairs(predicate)
    subject, object_ = pairs[int(rng.integers(len(pairs)))]
    return subject, predicate, object_


def pair_scene(rng: np.random.Generator, subject: str, predicate: str, object_: str) -> Scene:
    """One cell that shows a triple: the pair in the middle, up to 3 px off. Object 0 is the subject, object 1 the object."""
    if predicate not in RULES or not fits(subject, predicate, object_):
        raise DataError(
            f"({subject}, {predicate}, {object_}) cannot be drawn: no rule, or too large for a cell of {CELL} px"
        )
    layout = RULES[predicate](rng, subject, object_)
    left, top, right, bottom = _extent(layout, subject, object_)
    free = [(CELL - (right - left)) / 2, (CELL - (bottom - top)) / 2]
    dx, dy = (
        f - low + rng.uniform(-1, 1) * min(3.0, f - 1) for f, low in zip(free, (left, top), strict=True)
    )
    placed = []
    for name, (x, y), facing in (
        (subject, layout.subject, layout.subject_facing),
        (object_, layout.object, layout.object_facing),
    ):
        w, h = PICTOGRAMS[name].size
        x, y = min(max(round(x + dx), 0), CELL - w), min(max(round(y + dy), 0), CELL - h)
        placed.append(Placed(name, int(x), int(y), w, h, facing))
    return Scene(
        CELL, CELL, int(rng.integers(len(BACKGROUNDS))), tuple(placed), ((0, predicate, 1),),
        (1, 0) if layout.front == "subject" else (0, 1),
        tuple(tuple((x + dx, y + dy) for x, y in line) for line in layout.lines),
        tuple((x + dx, y + dy) for x, y in layout.dots),
    )  # fmt: skip


def lone_scene(rng: np.random.Generator, name: str) -> Scene:
    """One cell with a single object in the middle, up to 6 px off."""
    w, h = PICTOGRAMS[name].size
    x, y = (round((CELL - size) / 2 + rng.uniform(-6, 6)) for size in (w, h))
    facing = "left" if rng.random() < 0.5 else "right"
    return Scene(
        CELL, CELL, int(rng.integers(len(BACKGROUNDS))), (Placed(name, x, y, w, h, facing),), (), (0,)
    )


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
        CELL * len(scenes),
        CELL,
        scenes[0].background,
        tuple(objects),
        tuple(relations),
        tuple(order),
        tuple(lines),
        tuple(dots),
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
