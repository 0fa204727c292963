"""Figures of predictions: accuracy, macro-F1, intervals by name pair, confusions, calibration."""

import numpy as np
from numpy.typing import NDArray

from sgpipe.probes.data import Indices

Floats = NDArray[np.float64]


def confusion_matrix(labels: Indices, predicted: Indices, classes: int) -> Indices:
    """Counts `[classes, classes]`: row the true class, column the predicted one."""
    return np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)


def macro_f1(confusion: Indices) -> float:
    """Mean over the classes that occur of 2 · hits / (true + predicted)."""
    true, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    return float((2 * confusion.diagonal()[true > 0] / (true + predicted)[true > 0]).mean())


def interval(correct: NDArray[np.bool_], pairs: Indices, resamples: int, seed: int) -> tuple[float, float]:
    """95 % percentile interval of the accuracy, by bootstrap over name pairs: rows of one pair stand and fall together."""
    _, place = np.unique(pairs, return_inverse=True)
    hits, rows = np.bincount(place, weights=correct), np.bincount(place)
    weights = np.random.default_rng(seed).multinomial(len(rows), np.full(len(rows), 1 / len(rows)), resamples)
    low, high = np.quantile((weights @ hits) / (weights @ rows), (0.025, 0.975))
    return float(low), float(high)


def calibration_error(logits: Floats, labels: Indices, bins: int = 15) -> float:
    """Expected calibration error (Guo et al. 2017, eq. 3): |accuracy − confidence| over equal bins of confidence, weighted.

    NaN of no row.
    """
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    confidence = shifted.max(axis=1) / shifted.sum(axis=1)
    correct = logits.argmax(axis=1) == labels
    bin_of = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    gaps = np.bincount(bin_of, weights=correct - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(labels)) if len(labels) else float("nan")
