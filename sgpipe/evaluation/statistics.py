"""How sure a share is: intervals by triple, paired tests, many tests at once, sizes of samples, errors of a judge.

Arrays are `[T, S]`: T triples, which are drawn from a population, and S images of each, which share a triple and so are not
independent. NaN in an outcome stands for an image that does not count.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]
Combine = Callable[[list[Floats]], Floats]
"""A figure made of the means of several arrays, for many draws `[resamples]` at a time."""
MOST_TRIPLES = 20_000


@dataclass(frozen=True)
class Estimate:
    """A mean over `count` images, and its interval; NaN where no image counts."""

    value: float
    low: float
    high: float
    count: int


@lru_cache(maxsize=8)
def _draws(resamples: int, seed: int, triples: int, images: int) -> Floats:
    """How often each image is in each draw, `[resamples, T · S]`."""
    rng = np.random.default_rng((seed, triples, images))
    rows = rng.integers(triples, size=(resamples, triples, 1))
    columns = rng.integers(images, size=(resamples, triples, images))
    size = triples * images
    places = np.arange(resamples)[:, None, None] * size + rows * images + columns
    return np.bincount(places.reshape(-1), minlength=resamples * size).reshape(resamples, size).astype(np.float64)


def exact_share(values: Floats, confidence: float) -> Estimate:
    """A share of 0 or 1 with the exact binomial interval (Clopper & Pearson 1934) of as many images as triples count."""
    counted = np.isfinite(values)
    width = 1 - ((1 - confidence) / 2) ** (1 / int(counted.any(1).sum()))
    share = float(values[counted].max())
    low, high = (0.0, width) if share == 0.0 else (1 - width, 1.0)
    return Estimate(share, low, high, int(counted.sum()))


def of_means(combine: Combine, arrays: Sequence[Floats]) -> float:
    """`combine` of the means over the finite values; NaN where an array has none."""
    if any(not np.isfinite(values).any() for values in arrays):
        return float("nan")
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(combine([np.atleast_1d(np.nanmean(values)) for values in arrays])[0])


@dataclass(frozen=True)
class Bootstrap:
    """Draws of T triples with replacement and, within each, of its S images with replacement (Davison & Hinkley 1997, §3.8).

    The same object resamples all arrays of one shape alike, so that differences are paired.
    """

    resamples: int
    confidence: float
    seed: int

    def means(self, values: Floats) -> Floats:
        """Means `[resamples]` of the finite values of each draw; NaN for a draw without any."""
        counted, draws = np.isfinite(values), _draws(self.resamples, self.seed, *values.shape)
        with np.errstate(invalid="ignore"):
            return (draws @ np.where(counted, values, 0.0).reshape(-1)) / (draws @ counted.reshape(-1).astype(np.float64))

    def mean(self, values: Floats) -> Estimate:
        """The mean of the finite values, with the percentile interval of its draws.

        A share of 0 or 1 has draws without width: `exact_share` stands for it.
        """
        found = self.function(lambda means: means[0], [values])
        if found.value in (0.0, 1.0) and found.low == found.high:
            return exact_share(values, self.confidence)
        return found

    def difference(self, first: Floats, second: Floats) -> Estimate:
        """Mean of `first` less mean of `second`, triples and images drawn together; counts images finite in both."""
        return self.function(lambda means: means[0] - means[1], [first, second])

    def function(self, combine: Combine, arrays: Sequence[Floats]) -> Estimate:
        """`combine` of the means of several arrays of one shape, and the interval of it; counts images finite in all."""
        if any(not np.isfinite(values).any() for values in arrays):
            return Estimate(np.nan, np.nan, np.nan, 0)
        with np.errstate(invalid="ignore", divide="ignore"):
            draws = combine([self.means(values) for values in arrays])
        kept = draws[np.isfinite(draws)]
        tail = (1 - self.confidence) / 2
        low, high = np.quantile(kept, (tail, 1 - tail)).tolist() if len(kept) else (np.nan, np.nan)
        return Estimate(of_means(combine, arrays), low, high, int(np.isfinite(arrays).all(0).sum()))


@dataclass(frozen=True)
class Paired:
    """McNemar's test: pairs won by the first alone and by the second alone, and two-sided p values.

    `difference` has the sign of what `clustered` tests: the mean over triples of (won − lost) / pairs. Without a pair it and the p
    values are NaN.
    """

    first_only: int
    second_only: int
    difference: float
    exact: float
    clustered: float


def mcnemar(first: Floats, second: Floats) -> Paired:
    """Compare two arms by their outcomes 0/1 `[T, S]` on the same triples and seeds; pairs with a NaN are left out.

    `exact` is the binomial test on discordant pairs, as if all images were independent. `clustered` is Durkalski et al. 2003,
    (Σ_k d_k / n_k)² / Σ_k (d_k / n_k)² ~ χ²(1) with d_k the difference of discordant pairs of triple k and n_k its pairs: it
    lets the images of a triple agree. With one image per triple it is McNemar's own (b − c)² / (b + c).
    """
    both = np.isfinite(first) & np.isfinite(second)
    difference = np.where(both, first, 0.0) - np.where(both, second, 0.0)
    if not both.any():
        return Paired(0, 0, np.nan, np.nan, np.nan)
    won, lost = int((difference > 0).sum()), int((difference < 0).sum())
    exact = float(stats.binomtest(won, won + lost, 0.5).pvalue) if won + lost else 1.0
    pairs = both.sum(1)
    shares = difference.sum(1)[pairs > 0] / pairs[pairs > 0]
    spread = float(np.square(shares).sum())
    clustered = float(stats.chi2.sf(shares.sum() ** 2 / spread, 1)) if spread else 1.0
    return Paired(won, lost, float(shares.mean()), exact, clustered)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p values that keep the chance of any false finding among them below the level (Holm 1979), in the given order."""
    order = np.argsort(p_values, kind="stable")
    steps = np.minimum(1.0, np.arange(len(order), 0, -1) * np.array(p_values)[order])
    adjusted = np.empty(len(order))
    adjusted[order] = np.maximum.accumulate(steps)
    return adjusted.tolist()


def triples_needed(share: float, power: float = 0.8, level: float = 0.05) -> int | None:
    """The fewest independent triples with which a two-sided exact binomial test tells `share` from a half with the power.

    0.6 needs 199, 0.55 needs 786. None if it takes more than `MOST_TRIPLES`.
    """
    if share == 0.5:
        return None
    normal = (stats.norm.isf(level / 2) * 0.5 + stats.norm.isf(1 - power) * np.sqrt(share * (1 - share))) / (share - 0.5)
    counts = np.arange(1, min(MOST_TRIPLES, 2 * int(normal**2) + 100) + 1)
    low, high = stats.binom.ppf(level / 2, counts, 0.5), stats.binom.isf(level / 2, counts, 0.5)
    low = np.where(stats.binom.cdf(low, counts, 0.5) <= level / 2, low, low - 1)
    enough = np.flatnonzero(stats.binom.cdf(low, counts, share) + stats.binom.sf(high, counts, share) >= power)
    return int(counts[enough[0]]) if len(enough) else None


def rogan_gladen(apparent: float, sensitivity: float, specificity: float) -> float:
    """The true share that a judge with these error rates reports as `apparent` (Rogan & Gladen 1978), held within 0–1.

    NaN for a judge no better than a coin (sensitivity + specificity ≤ 1).
    """
    informed = sensitivity + specificity - 1
    if not informed > 0:
        return float("nan")
    return float(np.clip((apparent + specificity - 1) / informed, 0.0, 1.0))
