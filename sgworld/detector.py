"""The world's exact detector: which objects a picture shows and where, from its pixels alone.

Every object has one size and two facings, so a picture is compared with 72 templates. A coarse pass at half resolution finds
where each template fits best; a fine pass counts, pixel by pixel, how much of the template the picture agrees with. Objects are
then taken greedily, the one that explains most pixels first, and pixels that it explains count as hidden for the others. An object
of which too little is visible, or of which too much disagrees, is not reported.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from sgworld.pictograms import FACINGS, NAMES, sprite

SURE, UNSURE = 40.0, 120.0
"""Distance of two colours (Euclidean, 0–255 per channel) up to which a pixel agrees fully, and from which not at all."""
AGREEMENT = 0.6
"""Least share of the visible template that must agree."""
VISIBLE = 0.38
"""Least share of the template that must not be hidden by objects in front."""
_CANDIDATES, _MARGIN = 48, 2
_Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Detection:
    """An object found, its box in pixels and the share of its visible template that agrees."""

    name: str
    x: float
    y: float
    w: float
    h: float
    score: float


@dataclass(frozen=True)
class _Template:
    """Colours `[3, h, w]`, and which pixels belong to the object `[h, w]`, 0 or 1."""

    name: str
    colour: _Floats
    alpha: _Floats


@dataclass
class _Candidate:
    """A template at a place: how far each of its pixels agrees, and how much each counts."""

    template: _Template
    x: int
    y: int
    agreement: _Floats
    weight: _Floats


@cache
def _templates() -> tuple[_Template, ...]:
    made = []
    for name in NAMES:
        for facing in FACINGS:
            pixels = sprite(name, facing).astype(np.float32)
            made.append(
                _Template(
                    name,
                    np.ascontiguousarray(pixels[..., :3].transpose(2, 0, 1)),
                    np.where(pixels[..., 3] >= 128, 1.0, 0.0).astype(np.float32),
                )
            )
    return tuple(made)


@cache
def _coarse_kernels() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Half-resolution kernels: colours times weight `[72, 3, 14, 14]`, weights `[72, 1, 14, 14]`, and Σ w c² `[72]`."""
    size = max(max(template.alpha.shape) for template in _templates()) // 2
    colour = torch.zeros(len(_templates()), 3, size, size)
    weight = torch.zeros(len(_templates()), 1, size, size)
    for index, template in enumerate(_templates()):
        alpha = torch.from_numpy(template.alpha)[None, None]
        rgb = torch.from_numpy(template.colour)[None]
        even = [-side % 2 for side in template.alpha.shape]
        alpha, rgb = (F.pad(t, (0, even[1], 0, even[0])) for t in (alpha, rgb))
        small = F.avg_pool2d(alpha, 2)
        mean = F.avg_pool2d(rgb * alpha, 2) / small.clamp(min=1e-3)
        h, w = small.shape[-2:]
        weight[index, :, :h, :w] = small[0]
        colour[index, :, :h, :w] = (mean * small)[0]
    square = (colour.square() / weight.clamp(min=1e-3)).sum((1, 2, 3))
    return colour, weight, square


def _distance(pixels: _Floats, colour: _Floats) -> _Floats:
    """Euclidean distance `[..., h, w]` of colours `[3, ..., h, w]`, one channel at a time: sums over an axis of 3 are slow."""
    total = np.square(pixels[0] - colour[0])
    for channel in (1, 2):
        away = pixels[channel] - colour[channel]
        total += np.square(away, out=away)
    return np.sqrt(total, out=total)


def _soft_agreement(distance: _Floats) -> _Floats:
    return np.clip((UNSURE - distance) / (UNSURE - SURE), 0.0, 1.0)


def _background(picture: _Floats) -> _Floats:
    """The most frequent colour `[3]` of `[3, H, W]`, coarsely binned and averaged within its bin."""
    flat = picture.reshape(3, -1).T
    bins = (flat // 24).astype(np.int32) @ np.array([121, 11, 1])
    best = np.bincount(bins).argmax()
    return flat[bins == best].mean(0)


@cache
def _stacked() -> tuple[_Floats, _Floats]:
    """Colours `[3, 72, 28, 28]` and pixels of the object `[72, 28, 28]` of all templates, in the upper left corner."""
    height, width = (max(template.alpha.shape[axis] for template in _templates()) for axis in (0, 1))
    colour = np.zeros((3, len(_templates()), height, width), np.float32)
    alpha = np.zeros(colour.shape[1:], np.float32)
    for index, template in enumerate(_templates()):
        h, w = template.alpha.shape
        colour[:, index, :h, :w], alpha[index, :h, :w] = template.colour, template.alpha
    return colour, alpha


def _contrasts(background: _Floats) -> _Floats:
    """Weights `[72, 28, 28]`: a template's pixels count as far as they differ from the background; a pale one proves little."""
    colour, alpha = _stacked()
    away = _distance(background[:, None, None, None], colour)
    return alpha * np.clip(away / UNSURE, 0.1, 1.0)


def _coarse(pictures: torch.Tensor) -> torch.Tensor:
    """Mean squared colour error `[B, 72, H/2 + 1, W/2 + 1]` of every template at every even place (from −2 px on)."""
    colour, weight, square = _coarse_kernels()
    small = F.pad(F.avg_pool2d(pictures, 2), (1, colour.shape[-1], 1, colour.shape[-1]), mode="replicate")
    cross = F.conv2d(small, colour)
    energy = F.conv2d(small.square().sum(1, keepdim=True), weight)
    return (energy - 2 * cross + square[:, None, None]) / weight.sum((1, 2, 3))[:, None, None]


def _places(error: torch.Tensor) -> list[tuple[int, int, int]]:
    """Of one picture, where each template fits best `(template, x, y)`: the templates of the lowest errors, lowest first."""
    values, index = error.flatten(1).min(1)
    width = error.shape[-1]
    return [
        (template, 2 * (place % width - 1), 2 * (place // width - 1))
        for template, place in ((item, int(index[item])) for item in values.argsort()[:_CANDIDATES].tolist())
    ]


class _Windows:
    """Every place of a picture `[3, H, W]` as windows `[3, rows, columns, h, w]`, made once per size."""

    def __init__(self, picture: _Floats) -> None:
        self._picture = picture
        self._made: dict[tuple[int, ...], _Floats] = {}

    def of(self, size: tuple[int, ...]) -> _Floats:
        if size not in self._made:
            self._made[size] = np.lib.stride_tricks.sliding_window_view(self._picture, size, axis=(1, 2))
        return self._made[size]


def _refined(windows: _Windows, template: _Template, weight: _Floats, x: int, y: int) -> _Candidate | None:
    """The place within 2 px of (x, y), inside the picture, where most of the template agrees."""
    left, top = max(0, x - _MARGIN), max(0, y - _MARGIN)
    near = windows.of(weight.shape)[:, top : y + _MARGIN + 1, left : x + _MARGIN + 1]
    if not near.size:
        return None
    agreement = _soft_agreement(_distance(near, template.colour))
    score = np.einsum("ijhw,hw->ij", agreement, weight)
    row, column = np.unravel_index(int(score.argmax()), score.shape)
    return _Candidate(template, left + int(column), top + int(row), agreement[row, column], weight)


def _greedy(candidates: list[_Candidate], size: tuple[int, ...]) -> Iterator[Detection]:
    """Objects in the order of the pixels they explain; each hides its pixels from the later ones."""
    free = np.ones(size, np.float32)
    totals = [float(candidate.weight.sum()) for candidate in candidates]
    values = [_value(free, candidate) for candidate in candidates]
    while True:
        scored = [
            (agreed - 2.0 * (seen - agreed), index)
            for index, (agreed, seen) in enumerate(values)
            if seen >= VISIBLE * totals[index] and agreed >= AGREEMENT * seen
        ]
        value, best = max(scored, default=(0.0, -1))
        if value <= 0.0:
            return
        found = candidates[best]
        h, w = found.template.alpha.shape
        yield Detection(found.template.name, found.x, found.y, w, h, values[best][0] / values[best][1])
        area = free[found.y : found.y + h, found.x : found.x + w]
        area *= 1.0 - found.template.alpha * (found.agreement > 0.3)
        values[best] = (0.0, 0.0)
        for index, candidate in enumerate(candidates):
            if values[index][1] and _overlaps(candidate, found):
                values[index] = _value(free, candidate)


def _value(free: _Floats, candidate: _Candidate) -> tuple[float, float]:
    """Weight of the candidate's visible pixels that agree, and of all its visible pixels."""
    h, w = candidate.weight.shape
    seen = free[candidate.y : candidate.y + h, candidate.x : candidate.x + w] * candidate.weight
    return float(np.vdot(seen, candidate.agreement)), float(seen.sum())


def _overlaps(first: _Candidate, second: _Candidate) -> bool:
    (h1, w1), (h2, w2) = first.template.alpha.shape, second.template.alpha.shape
    across = first.x < second.x + w2 and second.x < first.x + w1
    return across and first.y < second.y + h2 and second.y < first.y + h1


def detect_batch(pictures: NDArray[np.uint8]) -> list[list[Detection]]:
    """Detections of each picture of `[B, H, W, 3]`, 0–255, H and W at least 32; every list in the order of certainty."""
    planes = pictures.astype(np.float32).transpose(0, 3, 1, 2)
    results = []
    for picture, error in zip(np.ascontiguousarray(planes), _coarse(torch.from_numpy(planes)), strict=True):
        weights, windows = _contrasts(_background(picture)), _Windows(picture)
        refined = []
        for index, x, y in _places(error):
            template = _templates()[index]
            h, w = template.alpha.shape
            candidate = _refined(windows, template, np.ascontiguousarray(weights[index, :h, :w]), x, y)
            if candidate is not None:
                share = float(np.vdot(candidate.agreement, candidate.weight) / candidate.weight.sum())
                if share > AGREEMENT * VISIBLE:
                    refined.append(candidate)
        results.append(list(_greedy(refined, picture.shape[1:])))
    return results


def detect(picture: NDArray[np.uint8]) -> list[Detection]:
    """Detections of one picture `[H, W, 3]`."""
    return detect_batch(picture[None])[0]
