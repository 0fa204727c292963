"""A pen that draws flat shapes at eight times the final size, in the final size's units."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

SCALE = 8
Colour = tuple[int, int, int]
Point = tuple[float, float]


class Pen:
    """Draws on a transparent canvas of `width`×`height` pixels; coordinates may be fractions of a pixel."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self._image = Image.new("RGBA", (width * SCALE, height * SCALE), (0, 0, 0, 0))
        self._draw = ImageDraw.Draw(self._image)

    def _scaled(self, points: Sequence[Point]) -> list[Point]:
        return [(x * SCALE, y * SCALE) for x, y in points]

    def box(self, x: float, y: float, w: float, h: float, fill: Colour, radius: float = 0) -> None:
        """A rectangle, its corners rounded by `radius`."""
        (left, top), (right, bottom) = self._scaled([(x, y), (x + w, y + h)])
        self._draw.rounded_rectangle((left, top, right - 1, bottom - 1), radius * SCALE, fill)

    def oval(self, x: float, y: float, w: float, h: float, fill: Colour) -> None:
        """An ellipse in the given box."""
        (left, top), (right, bottom) = self._scaled([(x, y), (x + w, y + h)])
        self._draw.ellipse((left, top, right - 1, bottom - 1), fill)

    def ring(self, x: float, y: float, size: float, width: float, fill: Colour) -> None:
        """A circle's outline of the given outer size and line width."""
        (left, top), (right, bottom) = self._scaled([(x, y), (x + size, y + size)])
        self._draw.ellipse((left, top, right - 1, bottom - 1), outline=fill, width=round(width * SCALE))

    def pie(self, x: float, y: float, w: float, h: float, start: float, end: float, fill: Colour) -> None:
        """A slice of an ellipse, degrees clockwise from three o'clock."""
        (left, top), (right, bottom) = self._scaled([(x, y), (x + w, y + h)])
        self._draw.pieslice((left, top, right - 1, bottom - 1), start, end, fill)

    def shape(self, points: Sequence[Point], fill: Colour) -> None:
        """A filled polygon."""
        self._draw.polygon(self._scaled(points), fill)

    def line(self, points: Sequence[Point], width: float, fill: Colour) -> None:
        """A polyline with round joints and ends."""
        scaled = self._scaled(points)
        self._draw.line(scaled, fill, round(width * SCALE), joint="curve")
        half = width * SCALE / 2
        for x, y in scaled:
            self._draw.ellipse((x - half, y - half, x + half, y + half), fill)

    def pixels(self) -> NDArray[np.uint8]:
        """RGBA `[height, width, 4]` by area averaging of premultiplied colour."""
        big = np.asarray(self._image, np.float32)
        alpha = big[..., 3:] / 255
        blocks = np.concatenate([big[..., :3] * alpha, alpha], -1)
        blocks = blocks.reshape(self.height, SCALE, self.width, SCALE, 4).mean((1, 3))
        colour = blocks[..., :3] / np.maximum(blocks[..., 3:], 1e-6)
        return np.concatenate([colour, blocks[..., 3:] * 255], -1).round().astype(np.uint8)
