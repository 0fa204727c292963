"""Does the image change with the graph, and in the direction that the graph says: the 2×2 of images and captions, and MSE."""

from collections.abc import Sequence
from itertools import combinations
from typing import Final

import numpy as np

from sgpipe.evaluation.samples import ImageFile, Pixels
from sgpipe.evaluation.sampling_plan import EvaluationTriple
from sgpipe.evaluation.statistics import Floats
from sgpipe.evaluation.verdicts import Scored

CHANCE: Final = {"text": 1 / 4, "image": 1 / 4, "group": 1 / 6, "crossed": 1 / 2}
"""Scores of a judge whose four scores are independent and equally distributed (Thrush et al. 2022 for the first three)."""


def two_by_two(shown: Scored, swapped: Scored) -> dict[str, Floats]:
    """Four scores 0/1 `[T, S]` of I⁺ (`shown`) and I⁻ (`swapped`) with c⁺ and c⁻; NaN where one of the four is missing.

    text: each image prefers its own caption. image: each caption prefers its own image. group: both. crossed: the two
    right pairs together beat the two wrong ones. Equal scores win nothing (Thrush et al. 2022, eq. 1–3).
    """
    a, b, c, d = shown.positive, shown.negative, swapped.positive, swapped.negative
    text, image = (a > b) & (d > c), (a > c) & (d > b)
    won = {"text": text, "image": image, "group": text & image, "crossed": a + d > b + c}
    known = np.isfinite([a, b, c, d]).all(0)
    return {name: np.where(known, values, np.nan) for name, values in won.items()}


def distances(file: ImageFile, cases: Sequence[EvaluationTriple], seeds: Sequence[int], prompt: str) -> tuple[Floats, Floats]:
    """Mean squared differences of pixels, 0–255, per triple `[T, 1]`: MSE(I⁺, I⁻) at equal seeds, and MSE of the I⁺ of one triple
    between seeds, what two images differ by anyway; NaN with a single seed. Raises `DataError` if an image is missing.
    """
    ids = [case.triple_id for case in cases]
    shown, swapped = ([file.read(rows) for rows in file.rows(prompt, graph, ids, seeds).T] for graph in ("positive", "negative"))
    by_graph = [mse(a, b) for a, b in zip(shown, swapped, strict=True)]
    by_seed = [mse(a, b) for a, b in combinations(shown, 2)] or [np.full(len(cases), np.nan)]
    return np.mean(by_graph, axis=0)[:, None], np.mean(by_seed, axis=0)[:, None]


def mse(first: Pixels, second: Pixels) -> Floats:
    """Mean squared difference `[N]` of images `[N, H, W, 3]`, 0–255."""
    return np.array([np.square(a.astype(np.float32) - b).mean(dtype=np.float64) for a, b in zip(first, second, strict=True)])
