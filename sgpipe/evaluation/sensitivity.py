"""Does the image change with the graph, and in the direction that the graph says: the 2×2 of images and captions, and MSE."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final

import numpy as np

from sgpipe.errors import DataError
from sgpipe.evaluation.samples import ImageFile
from sgpipe.evaluation.sampling_plan import EvaluationTriple
from sgpipe.evaluation.statistics import Floats
from sgpipe.evaluation.verdicts import Condition, Scored

CHANCE: Final = {"text": 1 / 4, "image": 1 / 4, "group": 1 / 6, "crossed": 1 / 2}
"""Scores of a judge whose four scores are independent and equally distributed (Thrush et al. 2022 for the first three)."""


def two_by_two(shown: Scored, swapped: Scored) -> dict[str, Floats]:
    """Four scores 0/1 `[T, S]` of I⁺ (`shown`) and I⁻ (`swapped`) with c⁺ and c⁻; NaN where one of the four is missing.

    text: each image prefers its own caption. image: each caption prefers its own image. group: both. crossed: the two
    right pairs together beat the two wrong ones. Equal scores win nothing (Thrush et al. 2022, eq. 1–3).
    """
    a, b, c, d = shown.positive, shown.negative, swapped.positive, swapped.negative
    known = np.isfinite(a) & np.isfinite(b) & np.isfinite(c) & np.isfinite(d)
    with np.errstate(invalid="ignore"):
        text = (a > b) & (d > c)
        image = (a > c) & (d > b)
        crossed = a + d > b + c
    won = {"text": text, "image": image, "group": text & image, "crossed": crossed}
    return {name: np.where(known, values.astype(np.float64), np.nan) for name, values in won.items()}


@dataclass(frozen=True)
class Distances:
    """Mean squared differences of pixels, 0–255, per triple `[T, 1]`; NaN with a single seed in `other_seed`."""

    graphs: Floats
    other_seed: Floats


def distances(file: ImageFile, cases: Sequence[EvaluationTriple], seeds: Sequence[int], prompt: str) -> Distances:
    """MSE(I⁺, I⁻) at equal seeds, and MSE of the I⁺ of one triple between seeds: what two images differ by anyway.

    Raises `DataError` if an image of the two conditions is missing.
    """
    place = {case.triple_id: row for row, case in enumerate(cases)}
    column = {seed: index for index, seed in enumerate(seeds)}
    names = ("triple_id", "prompt", "graph", "seed")
    at: dict[tuple[str, int, int], int] = {}
    for index, (triple, of_prompt, graph, seed) in enumerate(zip(*(file.items[name].to_pylist() for name in names), strict=True)):
        if of_prompt == prompt and triple in place:
            at[graph, place[triple], column[seed]] = index
    needed = len(cases) * len(seeds)
    for graph in ("positive", "negative"):
        if sum(key[0] == graph for key in at) != needed:
            raise DataError(f"{file.path}: not all {needed} images of {prompt}, {graph}; sample the arm again")
    shown, swapped = (
        np.stack([file.read([at[graph, row, s] for row in range(len(cases))]) for s in range(len(seeds))])
        for graph in ("positive", "negative")
    )
    graphs = np.stack([_mse(a, b) for a, b in zip(shown, swapped, strict=True)])
    pairs = [_mse(shown[a], shown[b]) for a, b in combinations(range(len(seeds)), 2)]
    apart = np.stack(pairs).mean(0) if pairs else np.full(len(cases), np.nan)
    return Distances(graphs.mean(0)[:, None], apart[:, None])


def _mse(first: np.ndarray, second: np.ndarray) -> Floats:
    """Mean squared difference `[N]` of images `[N, H, W, 3]`."""
    return np.array([np.square(a.astype(np.float32) - b).mean(dtype=np.float64) for a, b in zip(first, second, strict=True)])


def condition_pairs(conditions: Sequence[Condition]) -> list[tuple[Condition, Condition]]:
    """Conditions of the triple's graph with that of its negative, of the same arm and prompt."""
    return [
        (each, other)
        for each in conditions
        if each.graph == "positive" and (other := Condition(each.arm, each.prompt, "negative")) in conditions
    ]
