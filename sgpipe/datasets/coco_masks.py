"""Centroids of COCO's masks, many at once: polygons by Green's theorem, run lengths by sums over runs. No mask is painted."""

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

from sgpipe.datasets.base import Finite

Side = Annotated[int, Meta(ge=1, le=1 << 15)]
Polygons = list[Annotated[list[Finite], Meta(min_length=6)]]


class Runs(Struct):
    """A mask as run lengths down its columns, background first; `counts` is COCO's compressed text or a list."""

    size: tuple[Side, Side]
    counts: str | list[Annotated[int, Meta(ge=0, lt=1 << 31)]]


Mask = Polygons | Runs | None


def centroids(masks: Sequence[Mask]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The mean x and y of each mask in pixels `[N, 2]`, NaN where there is no mask or it is empty, and which are no masks at all:
    run lengths that do not fill their size.
    """
    found, faulty = np.full((len(masks), 2), np.nan), np.zeros(len(masks), np.bool_)
    drawn = [n for n, mask in enumerate(masks) if isinstance(mask, list) and mask]
    if drawn:
        found[drawn] = _of_polygons([masks[n] for n in drawn])  # type: ignore[misc]
    coded = [n for n, mask in enumerate(masks) if isinstance(mask, Runs)]
    if coded:
        found[coded], faulty[coded] = _of_runs([masks[n] for n in coded])  # type: ignore[misc]
    return found, faulty


def _of_polygons(masks: list[Polygons]) -> NDArray[np.float64]:
    """Area-weighted centroids of the parts of each mask; the mean of the corners where a line crosses itself and areas cancel."""
    owner = np.repeat(np.arange(len(masks)), [len(mask) for mask in masks])
    parts = [part if len(part) % 2 == 0 else part[:-1] for mask in masks for part in mask]
    corners = np.array([value for part in parts for value in part], np.float64).reshape(-1, 2)
    lengths = np.array([len(part) // 2 for part in parts])
    first = np.cumsum(lengths) - lengths
    following = np.arange(1, len(corners) + 1)
    following[first + lengths - 1] = first
    near = corners - np.repeat(corners[first], lengths, axis=0)  # about a corner of the part, so that nothing cancels
    then = near[following]
    twice = near[:, 0] * then[:, 1] - then[:, 0] * near[:, 1]
    area = np.add.reduceat(twice, first) / 2
    moment = np.add.reduceat((near + then) * twice[:, None], first) / 6
    moment = moment * np.sign(area)[:, None] + corners[first] * np.abs(area)[:, None]
    total = np.bincount(owner, np.abs(area), len(masks))
    weighted = np.stack([np.bincount(owner, moment[:, axis], len(masks)) for axis in (0, 1)], axis=1)
    of_corner = np.repeat(owner, lengths)
    sums = np.stack([np.bincount(of_corner, corners[:, axis], len(masks)) for axis in (0, 1)], axis=1)
    mean = sums / np.bincount(of_corner, minlength=len(masks))[:, None]
    centres = np.divide(weighted, total[:, None], out=mean.copy(), where=total[:, None] > 0)
    start = np.searchsorted(of_corner, np.arange(len(masks)))
    low, high = np.minimum.reduceat(corners, start), np.maximum.reduceat(corners, start)
    inside = np.all((centres >= low) & (centres <= high), axis=1)
    return np.where(inside[:, None], centres, mean)


def _of_runs(masks: list[Runs]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    counts, lengths = _counts(masks)
    first = np.cumsum(lengths) - lengths
    height, width = np.array([mask.size for mask in masks], np.int64).T
    ends = np.cumsum(counts)
    ends -= np.repeat(ends[first] - counts[first], lengths)
    last = ends[first + lengths - 1]
    faulty = (last != height * width) | (np.minimum.reduceat(counts, first) < 0)
    run = np.arange(len(counts)) - np.repeat(first, lengths)
    rows = np.repeat(height, lengths)
    shown = (run % 2 == 1) & ~np.repeat(faulty, lengths)
    sums = [
        np.add.reduceat(np.where(shown, up_to(ends, rows) - up_to(ends - counts, rows), 0), first) for up_to in (_columns, _rows)
    ]
    area = np.add.reduceat(np.where(shown, counts, 0), first)
    centres = np.stack(sums, axis=1) / np.maximum(area, 1)[:, None] + 0.5
    centres[area == 0] = np.nan
    return centres, faulty


def _columns(pixels: NDArray[np.int64], height: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sum of the columns of the first so many pixels, which run down the columns."""
    whole, rest = pixels // height, pixels % height
    return height * (whole * (whole - 1) // 2) + rest * whole


def _rows(pixels: NDArray[np.int64], height: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sum of the rows of the first so many pixels."""
    whole, rest = pixels // height, pixels % height
    return whole * (height * (height - 1) // 2) + rest * (rest - 1) // 2


def _counts(masks: list[Runs]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Run lengths of all masks one after the other, and how many each has; -1 stands for a text that is none.

    COCO's text (its API's `maskApi.c`): a number is a group of characters from 48 on, five bits each, lowest first, bit 6
    says that another follows and bit 5 of the last one is the sign; from the fourth number on it is the difference to the last but
    one.
    """
    texts = [mask.counts.encode() if isinstance(mask.counts, str) else b"" for mask in masks]
    texts = [text if text.isascii() and (text[-1:] or b"p")[0] < 80 and min(text, default=0) >= 48 else b"" for text in texts]
    code = np.frombuffer(b"".join(texts), np.uint8).astype(np.int64) - 48
    sizes = np.array([len(text) for text in texts])
    ends = np.flatnonzero(code & 32 == 0)
    begins = np.concatenate([[0], ends[:-1] + 1])[: len(ends)]
    shift = 5 * np.minimum(np.arange(len(code)) - np.repeat(begins, ends - begins + 1), 7)
    values = np.add.reduceat((code & 31) << shift, begins) if len(code) else np.zeros(0, np.int64)
    values -= np.where(code[ends] & 16 > 0, np.int64(32) << shift[ends], 0)
    of_text = np.bincount(np.repeat(np.arange(len(texts)), sizes)[ends], minlength=len(texts))
    lengths, parts, at = np.zeros(len(masks), np.int64), [], 0
    values = _summed(values, of_text[of_text > 0])
    for n, mask in enumerate(masks):
        own = np.array(mask.counts if isinstance(mask.counts, list) else values[at : at + of_text[n]], np.int64)
        at += of_text[n]
        parts.append(own if len(own) else np.array([-1]))
        lengths[n] = len(parts[-1])
    return np.concatenate(parts), lengths


def _summed(values: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """From the fourth on, each number of a text is the sum of itself and of what the last but one has become."""
    if not len(values):
        return values
    first = np.cumsum(lengths) - lengths
    place = np.arange(len(values)) - np.repeat(first, lengths)
    result = values.copy()
    for parity in (0, 1):
        mine = np.flatnonzero((place % 2 == parity) & (place > 0))
        if len(mine):
            owner = np.repeat(np.arange(len(lengths)), lengths)[mine]
            total = np.cumsum(values[mine])
            begins = np.flatnonzero(np.concatenate([[True], owner[1:] != owner[:-1]]))
            before = (total - values[mine])[begins]
            result[mine] = total - np.repeat(before, np.diff(np.append(begins, len(mine))))
    return result
