"""What the world is drawn with: 36 objects of a whole number of cells each, and the marks of relations, as cached RGBA sprites.

A cell is 4 px, the stride of the embedded VAE, and every corner of an object or a mark lies on the grid of cells: each has few
looks in latents.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sgpipe.errors import DataError
from sgworld.pen import Colour, Pen
from sgworld.pictograms import PICTOGRAMS
from sgworld.world.marks import MARKS

CELL = 4
"""Side of a cell, pixels."""
GRID = 16
"""Cells along a side of an image."""
SIDE = CELL * GRID
BACKGROUNDS: tuple[Colour, ...] = ((244, 241, 232), (226, 238, 246), (238, 230, 242), (229, 242, 228))
Pixels = NDArray[np.uint8]

SIZES: dict[str, tuple[int, int]] = {
    "person": (3, 5), "dog": (4, 3), "cat": (4, 3), "horse": (5, 4), "cow": (5, 4), "sheep": (4, 3), "elephant": (5, 4),
    "bird": (4, 3), "tree": (4, 5), "flower": (3, 4), "banana": (4, 3), "apple": (3, 3), "car": (5, 3), "bus": (5, 4),
    "train": (5, 4), "boat": (5, 4), "bike": (5, 3), "motorcycle": (5, 3), "airplane": (5, 3), "table": (5, 3), "chair": (3, 4),
    "bench": (5, 3), "bed": (5, 3), "box": (4, 3), "basket": (4, 3), "hat": (3, 2), "bag": (3, 3), "umbrella": (4, 4),
    "kite": (3, 4), "ball": (3, 3), "cup": (3, 3), "bottle": (2, 4), "pizza": (3, 3), "laptop": (4, 3), "book": (4, 3),
    "clock": (3, 3),
}  # fmt: skip
"""Width and height of each object, cells."""
NAMES: tuple[str, ...] = tuple(SIZES)
FACINGS = ("right", "left")


class _ScaledPen(Pen):
    """A pen whose drawing is averaged over areas to another size."""

    def resized(self, width: int, height: int) -> Pixels:
        """RGBA `[height, width, 4]`, straight alpha."""
        small = self._image.convert("RGBa").resize((width, height), Image.Resampling.BOX)
        return np.asarray(small.convert("RGBA"))


def _outlined_sheep(p: Pen) -> None:
    """A sheep whose wool has a dark outline: pale wool alone is hard to tell from a pale background."""
    wool, line, face = (252, 250, 240), (96, 90, 110), (70, 62, 66)
    for x in (4.5, 8, 12, 15):
        p.box(x, 12, 2.4, 6, face, 0.8)
    for grown, fill in ((1.5, line), (0.0, wool)):
        for x, y in ((2.4, 4), (6, 2.6), (10.5, 2.6), (13, 5), (4, 7), (8, 7.4), (11.5, 7)):
            p.oval(x - grown, y - grown, 6.5 + 2 * grown, 6.5 + 2 * grown, fill)
    p.oval(15, 1.4, 8, 9.6, face)
    p.oval(18.6, 4, 2, 2, (255, 255, 255))


def size_of(name: str) -> tuple[int, int]:
    """Width and height of an object, cells. Raises `DataError` for a name that the world does not have."""
    if name not in SIZES:
        raise DataError(f"object {name!r} is not of this world; valid: {', '.join(NAMES)}")
    return SIZES[name]


@cache
def sprite(name: str, facing: str) -> Pixels:
    """RGBA pixels `[h, w, 4]` of an object, straight alpha; facing left is the mirror image."""
    w, h = size_of(name)
    pictogram = PICTOGRAMS[name]
    pen = _ScaledPen(*pictogram.size)
    (_outlined_sheep if name == "sheep" else pictogram.draw)(pen)
    pixels = pen.resized(w * CELL, h * CELL)
    return np.ascontiguousarray(pixels[:, ::-1]) if facing == "left" else pixels


@cache
def mark_sprite(kind: str, w: int, h: int, mirrored: bool) -> Pixels:
    """RGBA pixels `[4 h, 4 w, 4]` of a relation's mark of `w`×`h` cells."""
    pen = Pen(w * CELL, h * CELL)
    MARKS[kind](pen)
    pixels = pen.pixels()
    return np.ascontiguousarray(pixels[:, ::-1]) if mirrored else pixels
