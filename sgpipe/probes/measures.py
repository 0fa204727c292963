"""Figures of predictions: accuracy, macro-F1, intervals by group, confusions, calibration."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sgpipe.probes.data import Indices

Floats = NDArray[np.float64]


def mean(values: ArrayLike) -> float | None:
    """Mean of numbers or of truths; None of none, which metrics hold as null."""
    array = np.asarray(values, np.float64)
    return float(array.mean()) if array.size else None


def difference(one: float | None, other: float | None) -> float | None:
    """one − other; None where either is undefined."""
    return None if one is None or other is None else one - other


def confusion_matrix(labels: Indices, predicted: Indices, classes: int) -> Indices:
    """Counts `[classes, classes]`: row the true class, column the predicted one."""
    return np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)


def macro_f1(confusion: Indices) -> float:
    """Mean over the classes that occur of 2 · hits / (true + predicted)."""
    true, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    return float((2 * confusion.diagonal()[true > 0] / (true + predicted)[true > 0]).mean())


def interval(correct: NDArray[np.bool_], groups: Indices, resamples: int, seed: int) -> tuple[float, float]:
    """95 % percentile interval of the accuracy, by bootstrap over groups `[N]`: rows of one group stand and fall together."""
    _, place = np.unique(groups, return_inverse=True)
    hits, rows = np.bincount(place, weights=correct), np.bincount(place)
    weights = np.random.default_rng(seed).multinomial(len(rows), np.full(len(rows), 1 / len(rows)), resamples)
    low, high = np.quantile((weights @ hits) / (weights @ rows), (0.025, 0.975))
    return float(low), float(high)


def calibration_error(logits: Floats, labels: Indices, bins: int = 15) -> float | None:
    """Expected calibration error (Guo et al. 2017, eq. 3): |accuracy − confidence| over equal bins of confidence, weighted.

    None without rows.
    """
    if not len(labels):
        return None
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    confidence = shifted.max(axis=1) / shifted.sum(axis=1)
    correct = logits.argmax(axis=1) == labels
    bin_of = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    gaps = np.bincount(bin_of, weights=correct - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(labels))
