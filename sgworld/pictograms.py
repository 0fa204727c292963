"""The 36 objects of the world: flat pictograms of one fixed size each, facing right or mirrored."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from sgpipe.errors import DataError
from sgworld import living, things
from sgworld.pen import Pen, Point

Drawing = Callable[[Pen], None]


@dataclass(frozen=True)
class Pictogram:
    """How an object is drawn, and where things attach to it when it faces right (pixels from its top left).

    `hand`, `mouth`, `eye` for what acts; `head` where a hat sits; `seat` the height on which others rest and the middle of it.
    """

    draw: Drawing
    size: tuple[int, int]
    hand: Point | None = None
    mouth: Point | None = None
    eye: Point | None = None
    head: Point | None = None
    seat: Point | None = None


def _thing(draw: Drawing, w: int, h: int, seat: Point | None = None) -> Pictogram:
    return Pictogram(draw, (w, h), seat=seat)


PICTOGRAMS: dict[str, Pictogram] = {
    "person": Pictogram(living.person, (15, 26), (14, 14), (10, 5), (9, 3), (7.5, 2)),
    "dog": Pictogram(living.dog, (24, 18), (23, 9), (22.5, 8), (18.7, 4.5), (17, 3), (8, 7)),
    "cat": Pictogram(living.cat, (21, 17), (20, 8), (19, 9), (17, 6), (15.5, 3), (6, 8)),
    "horse": Pictogram(living.horse, (27, 23), (25, 8), (25, 7.5), (21, 4), (19, 1), (9, 8)),
    "cow": Pictogram(living.cow, (27, 20), (25, 9), (25, 10.5), (21, 5.5), (20.5, 3), (9, 6)),
    "sheep": Pictogram(living.sheep, (23, 18), (22, 8), (22, 8.5), (19.4, 5), (19, 2.5), (8, 2.5)),
    "elephant": Pictogram(living.elephant, (27, 23), (25, 19), (25, 20), (20.7, 5.7), (18, 2), (9, 4)),
    "bird": Pictogram(living.bird, (20, 16), (17, 5), (19.5, 4.6), (13.8, 3.5), (13, 0.5)),
    "tree": _thing(living.tree, 22, 25, (11, 1)),
    "flower": _thing(living.flower, 14, 18),
    "banana": _thing(living.banana, 17, 11),
    "apple": _thing(living.apple, 14, 14),
    "car": _thing(things.car, 27, 16, (13.5, 1)),
    "bus": _thing(things.bus, 28, 19, (14, 0.5)),
    "train": _thing(things.train, 28, 19, (8, 2)),
    "boat": _thing(things.boat, 26, 21, (13, 14.5)),
    "bike": _thing(things.bike, 26, 17, (9.5, 2.5)),
    "motorcycle": _thing(things.motorcycle, 27, 18, (8, 4.5)),
    "airplane": _thing(things.airplane, 27, 17),
    "table": _thing(things.table, 26, 16, (13, 0)),
    "chair": _thing(things.chair, 15, 22, (8, 10.5)),
    "bench": _thing(things.bench, 26, 16, (13, 8)),
    "bed": _thing(things.bed, 27, 15, (15, 6.5)),
    "box": _thing(things.box, 20, 16, (10, 1)),
    "basket": _thing(things.basket, 19, 14, (9.5, 1.5)),
    "hat": _thing(things.hat, 16, 10),
    "bag": _thing(things.bag, 16, 16),
    "umbrella": _thing(things.umbrella, 22, 20),
    "kite": _thing(things.kite, 16, 23),
    "ball": _thing(things.ball, 13, 13),
    "cup": _thing(things.cup, 15, 13),
    "bottle": _thing(things.bottle, 10, 20),
    "pizza": _thing(things.pizza, 17, 17),
    "laptop": _thing(things.laptop, 20, 15),
    "book": _thing(things.book, 17, 14),
    "clock": _thing(things.clock, 16, 16),
}
NAMES: tuple[str, ...] = tuple(PICTOGRAMS)
FACINGS = ("right", "left")


@cache
def sprite(name: str, facing: str) -> NDArray[np.uint8]:
    """RGBA pixels `[h, w, 4]` of an object, straight alpha; facing left is the mirror image."""
    if name not in PICTOGRAMS:
        raise DataError(f"object {name!r} has no pictogram; valid: {', '.join(NAMES)}")
    pictogram = PICTOGRAMS[name]
    pen = Pen(*pictogram.size)
    pictogram.draw(pen)
    pixels = pen.pixels()
    return np.ascontiguousarray(pixels[:, ::-1]) if facing == "left" else pixels


def anchor(name: str, kind: str, facing: str) -> Point:
    """An attachment point of an object in the given facing, pixels from its top left; its middle if it has none of that kind."""
    w, h = PICTOGRAMS[name].size
    x, y = getattr(PICTOGRAMS[name], kind) or (w / 2, h / 2)
    return (w - x, y) if facing == "left" else (x, y)
