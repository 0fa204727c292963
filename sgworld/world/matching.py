"""Templates of objects and marks found in images by their pixels.

A convolution gives the mean squared colour error of every template at every place of an image; each template's few best places are
looked at pixel by pixel. What marks painted over objects cover counts as hidden. Objects are then taken greedily, the one that
explains most pixels first, and pixels that it explains are hidden for the others: one of which too little is visible, or of which
too much disagrees, is not reported, and the same object may be found twice. Marks are looked for where the table has them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from sgworld.pen import Colour
from sgworld.world.sprites import CELL, FACINGS, NAMES, SIDE, Pixels, mark_sprite, sprite

SURE, UNSURE = 45.0, 130.0
"""Distance of two colours (Euclidean, 0–255 per channel) up to which a pixel agrees fully, and from which not at all."""
AGREEMENT, VISIBLE = 0.64, 0.33
"""Least share of an object's visible pixels that agree, and least share of its pixels that nothing hides."""
LEAST = 24.0
"""Least sum of agreement, in pixels that differ from the background as much as can be, that shows an object."""
OVERLAID = 0.7
"""Least share of a mark's pixels that agree so that what it covers counts as hidden."""
MARK_SURE, MARK_UNSURE, MARK_SHIFT = 50.0, 140.0, 2
"""Distances of colours as above, for marks, whose strokes a decoder softens; pixels by which a mark may stand off its place."""
_PLACES = 3
_Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Found:
    """A template at a place: what it shows, its box in pixels, and the share of its visible pixels that agrees."""

    name: str
    x: int
    y: int
    w: int
    h: int
    score: float


@dataclass(frozen=True)
class _Template:
    """Colours `[3, h, w]`, and which pixels belong to it `[h, w]`, 0 or 1."""

    name: str
    colour: _Floats
    alpha: _Floats


def _template(name: str, pixels: Pixels) -> _Template:
    colour = np.ascontiguousarray(pixels[..., :3].transpose(2, 0, 1), np.float32)
    return _Template(name, colour, (pixels[..., 3] >= 128).astype(np.float32))


class _Bank:
    """Templates with the kernels that compare all of them with an image at once."""

    def __init__(self, templates: Sequence[_Template]) -> None:
        self.templates = tuple(templates)
        height, width = (max(t.alpha.shape[axis] for t in templates) for axis in (0, 1))
        weight = torch.zeros(len(templates), 1, height, width)
        colour = torch.zeros(len(templates), 3, height, width)
        self._inside = torch.zeros(len(templates), SIDE, SIDE, dtype=torch.bool)
        for index, each in enumerate(templates):
            h, w = each.alpha.shape
            weight[index, 0, :h, :w] = torch.from_numpy(each.alpha)
            colour[index, :, :h, :w] = torch.from_numpy(each.colour * each.alpha)
            self._inside[index, : SIDE - h + 1, : SIDE - w + 1] = True
        self._error = torch.cat([-2 * colour, weight, colour.square().sum(1, keepdim=True)], 1)
        self._weight, self._area = weight, weight.sum((1, 2, 3))[:, None, None]
        self._pad = (0, width - 1, 0, height - 1)

    @torch.no_grad()
    def places(self, images: torch.Tensor, free: torch.Tensor) -> list[list[tuple[int, int, int]]]:
        """Of each image `[B, 3, 64, 64]` the places `(template, x, y)` of least error over pixels that are `free` `[B, 1, 64, 64]`.

        Of each template up to `_PLACES`, in as many cells, at which enough of it is free.
        """
        known = F.pad(torch.cat([images * free, images.square().sum(1, keepdim=True) * free, free], 1), self._pad)
        visible = F.conv2d(known[:, 4:], self._weight)
        error = F.conv2d(known, self._error) / visible.clamp(min=1)
        error = error.masked_fill(~self._inside | (visible < VISIBLE * self._area), torch.inf)
        blocks = error.unflatten(3, (-1, CELL)).unflatten(2, (-1, CELL)).transpose(3, 4).flatten(4).flatten(2, 3)
        values, inside = blocks.min(3)
        values, block = values.topk(_PLACES, largest=False)
        within = inside.gather(2, block)
        across = SIDE // CELL
        index = (block // across * CELL + within // CELL) * SIDE + block % across * CELL + within % CELL
        return [
            [
                (template, place % SIDE, place // SIDE)
                for template, (some, where) in enumerate(zip(value, at, strict=True))
                for error_, place in zip(some, where, strict=True)
                if error_ < float("inf")
            ]
            for value, at in zip(values.tolist(), index.tolist(), strict=True)
        ]


@cache
def _objects() -> _Bank:
    return _Bank([_template(name, sprite(name, way)) for name in NAMES for way in FACINGS])


OVERLAYS = {
    "sitting on": ((3, 1), (4, 1), (5, 1)),
    **dict.fromkeys(("standing on", "wearing"), ((2, 1),)),
    **dict.fromkeys(("holding", "carrying"), ((2, 2),)),
}
"""Sizes, cells, of marks that are painted over objects; all are mirror images of themselves."""


@cache
def _overlays() -> _Bank:
    sizes = [(kind, *size) for kind, several in OVERLAYS.items() for size in several]
    return _Bank([_template(kind, mark_sprite(kind, w, h, False)) for kind, w, h in sizes])


def _soft(away: _Floats, sure: float, unsure: float) -> _Floats:
    """Agreement of colour differences `[3, ...]`: 1 up to `sure`, 0 from `unsure` on."""
    return np.clip((unsure - np.sqrt(np.einsum("c...,c...->...", away, away))) / (unsure - sure), 0.0, 1.0)


def _agreement(image: _Floats, colour: _Floats, x: int, y: int) -> _Floats:
    """How far each pixel `[h, w]` of an image `[3, 64, 64]` at a place agrees with colours `[3, h, w]`, 0 to 1."""
    h, w = colour.shape[1:]
    return _soft(image[:, y : y + h, x : x + w] - colour, SURE, UNSURE)


def _background(image: _Floats) -> Colour:
    """The most frequent colour of `[3, H, W]`, coarsely binned, averaged within its bin and rounded to a multiple of 4."""
    flat = image.reshape(3, -1).T
    bins = (flat // 24).astype(np.int32) @ np.array([121, 11, 1])
    red, green, blue = (4 * round(float(value) / 4) for value in flat[bins == np.bincount(bins).argmax()].mean(0))
    return red, green, blue


def _hide_overlays(image: _Floats, places: Sequence[tuple[int, int, int]], free: _Floats) -> None:
    """Set pixels that marks cover to 0 in `free`."""
    for index, x, y in places:
        template = _overlays().templates[index]
        if np.vdot(_agreement(image, template.colour, x, y), template.alpha) >= OVERLAID * template.alpha.sum():
            h, w = template.alpha.shape
            free[y : y + h, x : x + w] *= 1.0 - template.alpha


def _blended(pixels: Pixels, background: Colour) -> tuple[_Floats, _Floats]:
    """Colours `[3, h, w]` of a sprite on a background, and how much each pixel counts `[h, w]`: as far as the sprite changes it."""
    sprite_, behind = pixels.astype(np.float32).transpose(2, 0, 1), np.array(background, np.float32)[:, None, None]
    alpha = sprite_[3] / 255
    colour = sprite_[:3] * alpha + behind * (1 - alpha)
    return colour, alpha * np.clip(np.sqrt(np.square(colour - behind).sum(0)) / UNSURE, 0.0, 1.0)


@cache
def _on_background(background: Colour) -> list[tuple[_Floats, _Floats]]:
    """Colours and weights of all objects' templates on a background."""
    return [_blended(sprite(name, way), background) for name in NAMES for way in FACINGS]


@cache
def _mark_on_background(kind: str, w: int, h: int, mirrored: bool, background: Colour) -> tuple[_Floats, _Floats]:
    colour, weight = _blended(mark_sprite(kind, w, h, mirrored), background)
    return colour, weight / weight.sum()


class Canvas:
    """An image `[3, 64, 64]` in which marks are looked for."""

    def __init__(self, image: _Floats) -> None:
        self._image = image
        self._background = _background(image)

    def mark(self, kind: str, w: int, h: int, mirrored: bool, x: int, y: int) -> float:
        """How well a mark of `w`×`h` cells stands within `MARK_SHIFT` pixels of (x, y), 0 to 1; 0 outside the image."""
        colour, weight = _mark_on_background(kind, w, h, mirrored, self._background)
        height, width = weight.shape
        left, top = max(0, x - MARK_SHIFT), max(0, y - MARK_SHIFT)
        near = self._image[:, top : y + MARK_SHIFT + height, left : x + MARK_SHIFT + width]
        if near.shape[1] < height or near.shape[2] < width:
            return 0.0
        windows = np.lib.stride_tricks.sliding_window_view(near, (height, width), axis=(1, 2))
        return float(np.einsum("ijhw,hw->ij", _soft(windows - colour[:, None, None], MARK_SURE, MARK_UNSURE), weight).max())


@dataclass
class _Candidate:
    """An object at a place: how far each of its pixels agrees, how much each counts, and the sums over what is visible."""

    template: _Template
    x: int
    y: int
    agreement: _Floats
    weight: _Floats
    total: float
    agreed: float = 0.0
    visible: float = 0.0

    def measure(self, free: _Floats) -> None:
        """Take the sums over pixels that are `free`."""
        h, w = self.weight.shape
        seen = free[self.y : self.y + h, self.x : self.x + w] * self.weight
        self.agreed, self.visible = float(np.vdot(seen, self.agreement)), float(seen.sum())

    def value(self) -> float:
        """Weight of the pixels that it explains, less twice that of those that disagree; 0 where it is not there."""
        if self.visible < VISIBLE * self.total or self.agreed < max(LEAST, AGREEMENT * self.visible):
            return 0.0
        return self.agreed - 2.0 * (self.visible - self.agreed)

    def meets(self, other: "_Candidate") -> bool:
        """Whether two boxes overlap."""
        (h, w), (other_h, other_w) = self.weight.shape, other.weight.shape
        across = self.x < other.x + other_w and other.x < self.x + w
        return across and self.y < other.y + other_h and other.y < self.y + h


def _find_objects(image: _Floats, places: Sequence[tuple[int, int, int]], free: _Floats) -> list[Found]:
    known = _on_background(_background(image))
    candidates = []
    for index, x, y in places:
        template, (colour, weight) = _objects().templates[index], known[index]
        agreement, total = _agreement(image, colour, x, y), float(weight.sum())
        if np.vdot(agreement, weight) > AGREEMENT * VISIBLE * total:
            candidates.append(_Candidate(template, x, y, agreement, weight, total))
            candidates[-1].measure(free)
    found: list[Found] = []
    while candidates:
        best = max(candidates, key=_Candidate.value)
        if best.value() <= 0:
            break
        h, w = best.weight.shape
        found.append(Found(best.template.name, best.x, best.y, w, h, best.agreed / best.visible))
        free[best.y : best.y + h, best.x : best.x + w] *= 1.0 - best.template.alpha * (best.agreement > 0.3)
        candidates = [each for each in candidates if each is not best]
        for each in candidates:
            if each.meets(best):
                each.measure(free)
    return found


def find(images: Pixels) -> list[tuple[list[Found], Canvas]]:
    """Objects of each image `[B, 64, 64, 3]`, 0–255, what is surest first, and where to look for marks."""
    planes = np.ascontiguousarray(images.transpose(0, 3, 1, 2), np.float32)
    tensor = torch.from_numpy(planes)
    free = np.ones((len(planes), 1, SIDE, SIDE), np.float32)
    for image, overlays, mask in zip(planes, _overlays().places(tensor, torch.from_numpy(free)), free, strict=True):
        _hide_overlays(image, overlays, mask[0])
    places = _objects().places(tensor, torch.from_numpy(free))
    return [
        (_find_objects(image, objects, mask[0]), Canvas(image)) for image, objects, mask in zip(planes, places, free, strict=True)
    ]
