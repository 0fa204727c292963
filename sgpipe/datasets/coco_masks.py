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
    """A sum over the pixels of a mask is one of prefix sums at the ends of its runs: plus where a run of the mask ends, which are
    the odd ones, minus where it begins.
    """
    counts, lengths = _counts(masks)
    first = np.cumsum(lengths) - lengths
    height, width = np.array([mask.size for mask in masks], np.int64).T
    ends = np.cumsum(counts, dtype=np.int64)
    ends -= np.repeat(ends[first] - counts[first], lengths)
    last = first + lengths - 1
    faulty = (ends[last] != height * width) | (np.minimum.reduceat(counts, first) < 0)
    sign = np.ones(len(counts), np.float64)
    sign[np.flatnonzero((np.arange(len(counts)) - np.repeat(first, lengths)) % 2 == 0)] = -1.0
    sign[last[lengths % 2 == 1]] = 0.0  # what follows the mask to the end
    rows = np.repeat(height, lengths).astype(np.float64)
    at = ends.astype(np.float64)
    whole = np.floor(at / rows)
    rest = at - whole * rows
    area = np.add.reduceat(sign * at, first)
    columns = sign * whole * (rows * 0.5 * (whole - 1.0) + rest)
    down = sign * 0.5 * (whole * rows * (rows - 1.0) + rest * (rest - 1.0))
    with np.errstate(divide="ignore", invalid="ignore"):
        centres = np.stack([np.add.reduceat(each, first) / area + 0.5 for each in (columns, down)], axis=1)
    centres[(area == 0) | faulty] = np.nan
    return centres, faulty


def _counts(masks: list[Runs]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Run lengths of all masks one after the other, and how many each has; -1 stands for a text that is none.

    COCO's text (its API's `maskApi.c`): a number is a group of characters from 48 on, five bits each, lowest first, bit 6
    says that another follows and bit 5 of the last one is the sign; from the fourth number on it is the difference to the last but
    one.
    """
    texts = [mask.counts.encode("utf-8", "replace") if isinstance(mask.counts, str) else b"" for mask in masks]
    sizes = np.array([len(text) for text in texts])
    code = np.frombuffer(b"".join(texts), np.uint8) - np.uint8(48)
    if (len(code) and code.max() > 63) or any(text and text[-1] >= 80 for text in texts):
        bad = [bool(text) and (text[-1] >= 80 or min(text) < 48 or max(text) > 111) for text in texts]
        masks = [Runs(mask.size, []) if odd else mask for mask, odd in zip(masks, bad, strict=True)]
        return _counts(masks)
    ends = np.flatnonzero(code < 32)
    begins = np.concatenate([[-1], ends[:-1]])[: len(ends)] + 1
    extra = ends - begins
    low = code & np.uint8(31)
    values = low[begins].astype(np.int64)
    for place in range(1, min(int(extra.max(initial=0)), 6) + 1):
        longer = np.flatnonzero(extra >= place)
        values[longer] += low[begins[longer] + place].astype(np.int64) << 5 * place
    negative = np.flatnonzero(low[ends] & np.uint8(16))
    values[negative] -= np.int64(32) << 5 * np.minimum(extra[negative], 6)
    bounds = np.searchsorted(ends, np.cumsum(sizes))  # numbers of the texts so far
    of_text = np.diff(bounds, prepend=0)
    values = _summed(values, of_text[of_text > 0])
    if len(values) and of_text.all():
        return values, of_text
    parts = [
        np.array(mask.counts or [-1], np.int64) if isinstance(mask.counts, list) or not count else values[bound - count : bound]
        for mask, bound, count in zip(masks, bounds.tolist(), of_text.tolist(), strict=True)
    ]
    return np.concatenate(parts), np.array(list(map(len, parts)))


def _summed(values: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """From the fourth on, each number of a text is the sum of itself and of what the last but one has become."""
    first = np.cumsum(lengths) - lengths
    # laid out so that texts begin at even places: odd and even numbers are then columns of two
    room = lengths + lengths % 2
    begin = np.cumsum(room) - room
    places = np.arange(len(values)) + np.repeat(begin - first, lengths)
    padded = np.zeros(int(room.sum()), np.int64)
    padded[places] = values
    padded[begin] = 0
    two = np.cumsum(padded.reshape(-1, 2), axis=0)
    before = np.concatenate([np.zeros((1, 2), np.int64), two])[begin // 2]
    two -= np.repeat(before, room // 2, axis=0)
    result = two.reshape(-1)[places]
    result[first] = values[first]
    return result
