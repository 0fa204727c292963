"""Confidence intervals over training seeds crossed with triples: every training run samples the same triples.

Readers × cases is the same design, and its analysis is used here: Obuchowski & Rockette 1995 with the degrees
of freedom of Hillis 2007 (Statistics in Medicine 26, 596–619). R runs have figures θ_r. MS(R) is their
variance (R − 1 in the denominator), Cov₂ the mean covariance of two runs' figures over triples. The mean over
the runs has the variance V = MS(R) / R + max(Cov₂, 0): the first part holds the training seed's variance and
what a run's own images add, the second the triples that all runs share. A bootstrap of three seeds would have
two thirds of the seeds' variance and no tails; here they come from Student's t with

    df = V² / ((MS(R) / R)² / (R − 1)),

R − 1 where the training seed decides and many where the triples do. Runs that count unlike many images are
weighted by their number.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy import stats

from sgpipe.evaluation.statistics import Bootstrap, Combine, Estimate, Floats, exact_share, mcnemar, of_means


@dataclass(frozen=True)
class Link:
    """A link function, on whose scale a figure is nearly normal; its inverse and its derivative."""

    there: Callable[[float], float]
    back: Callable[[float], float]
    slope: Callable[[float], float]


IDENTITY: Final = Link(lambda x: x, lambda y: y, lambda _: 1.0)
LOGIT: Final = Link(lambda x: float(np.log(x / (1 - x))), lambda y: float(1 / (1 + np.exp(-y))), lambda x: 1 / (x * (1 - x)))
LOG: Final = Link(lambda x: float(np.log(x)), lambda y: float(np.exp(y)), lambda x: 1 / x)


def spread(values: Floats, draws: Floats, weights: Floats) -> tuple[float, float]:
    """Standard error of the mean of R runs' figures `[R]`, weighted by `weights` `[R]`, and its degrees of freedom.

    `draws` `[resamples, R]` are the figures of resampled triples; a draw takes the same triples for all runs. NaN of fewer than
    two runs.
    """
    known = np.isfinite(values) & (weights > 0)
    values, draws, weights = values[known], draws[:, known], weights[known] / weights[known].sum()
    draws, runs = draws[np.isfinite(draws).all(1)], len(values)
    if runs < 2 or len(draws) < 2:
        return np.nan, np.nan
    covariance = np.cov(draws, rowvar=False)
    shared = max(0.0, float(covariance.sum() - np.trace(covariance)) / (runs * (runs - 1)))
    own = float(np.square(weights).sum() * values.var(ddof=1))
    variance = own + shared
    return float(np.sqrt(variance)), variance**2 / (own**2 / (runs - 1)) if own else np.inf


def t_test(value: float, error: float, freedom: float) -> float:
    """The two-sided p value of an estimate with this standard error; without error 0, or 1 for a value of 0."""
    if error == 0:
        return 0.0 if value else 1.0
    return float(2 * stats.t.sf(abs(value) / error, freedom))


@dataclass(frozen=True)
class Crossed:
    """Estimates over training runs, each `[T, S]` of the same triples and sampling seeds, with crossed intervals.

    A single run has the bootstrap's interval, which says how sure the figure is of that run's weights. Bounds are NaN where only
    one of several runs has the figure.
    """

    bootstrap: Bootstrap

    def mean(self, runs: Sequence[Floats]) -> Estimate:
        """The mean of the finite values, shares in 0–1, with the interval of its logit; `exact_share` for a share of 0 or 1."""
        beside = np.concatenate(runs, axis=1)
        if len(runs) == 1:
            return self.bootstrap.mean(beside)
        if np.isfinite(beside).any() and np.nanmean(beside) in (0.0, 1.0):
            return exact_share(beside, self.bootstrap.confidence)
        return self.function(lambda means: means[0], [runs], LOGIT)

    def difference(self, first: Sequence[Floats], second: Sequence[Floats]) -> tuple[Estimate, float]:
        """Mean of `first` less mean of `second`, run by run on the same triples and seeds, and its two-sided p value.

        Counts images finite in both. p is of `mcnemar` for a single run, else of the t test of `spread`; NaN without a pair.
        """
        if len(first) == 1:
            return self.bootstrap.difference(first[0], second[0]), mcnemar(first[0], second[0]).clustered
        found, error, freedom = self.difference_with_error(first, second)
        return found, t_test(found.value, error, freedom)

    def difference_with_error(self, first: Sequence[Floats], second: Sequence[Floats]) -> tuple[Estimate, float, float]:
        """`difference` of several runs, its standard error and degrees of freedom; NaN of a single run or without a pair."""
        return self._over_runs(lambda means: means[0] - means[1], [first, second], IDENTITY)

    def function(self, combine: Combine, arrays: Sequence[Sequence[Floats]], link: Link) -> Estimate:
        """`combine` of the means of several arrays, its interval on the scale of `link`; counts images finite in all."""
        if len(arrays[0]) == 1:
            return self.bootstrap.function(combine, [runs[0] for runs in arrays])
        return self._over_runs(combine, arrays, link)[0]

    def _over_runs(self, combine: Combine, arrays: Sequence[Sequence[Floats]], link: Link) -> tuple[Estimate, float, float]:
        """The estimate over several runs, and what `spread` says of it."""
        value = of_means(combine, [np.concatenate(runs, axis=1) for runs in arrays])
        if not np.isfinite(value):
            return Estimate(np.nan, np.nan, np.nan, 0), np.nan, np.nan
        by_run = list(zip(*arrays, strict=True))
        counts = [int(np.isfinite(run).all(0).sum()) for run in by_run]
        each = [of_means(combine, run) for run in by_run]
        with np.errstate(invalid="ignore", divide="ignore"):
            draws = [combine([self.bootstrap.means(values) for values in run]) for run in by_run]
        error, freedom = spread(np.array(each), np.stack(draws, axis=1), np.array(counts, np.float64))
        low = high = value
        if error != 0:
            reach = float(stats.t.ppf((1 + self.bootstrap.confidence) / 2, freedom)) * error * link.slope(value)
            low, high = (link.back(link.there(value) + sign * reach) for sign in (-1, 1))
        return Estimate(value, low, high, sum(counts)), error, freedom
