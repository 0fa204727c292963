"""Intervals over training seeds: textbook special cases, and how often they hold the truth of simulated runs."""

import numpy as np
import pytest
from scipy import stats

from sgpipe.evaluation.crossed import LOG, Crossed
from sgpipe.evaluation.statistics import Bootstrap, Floats

BOOTSTRAP = Bootstrap(resamples=200, confidence=0.95, seed=0)
CROSSED = Crossed(BOOTSTRAP)


def simulated(rng: np.random.Generator, mean: float, of_seed: float, runs: int = 3) -> list[Floats]:
    """Outcomes `[72, 3]` of runs by a probit model: triples (deviation 0.7), training seeds, and noise half of which runs share."""
    triple, seed = rng.normal(0, 0.7, (1, 72, 1)), rng.normal(0, of_seed, (runs, 1, 1))
    noise = np.sqrt(0.5) * (rng.normal(size=(1, 72, 3)) + rng.normal(size=(runs, 72, 3)))
    return list((mean + triple + seed + noise > 0).astype(float))


@pytest.mark.parametrize(("mean", "of_seed", "nested_at_most"), [(0.3, 0.4, 0.7), (2.5, 0.3, 0.85), (0.3, 0.0, 1.0)])
def test_intervals_hold_the_truth_of_other_training_seeds(mean: float, of_seed: float, nested_at_most: float) -> None:
    """Nine of ten at least (three seeds say little of their spread); runs taken as further images hold it far less often."""
    rng = np.random.default_rng(0)
    truth = stats.norm.cdf(mean / np.sqrt(1 + 0.7**2 + of_seed**2))
    held = nested = 0
    for _ in range(400):
        runs = simulated(rng, mean, of_seed)
        found, beside = CROSSED.mean(runs), BOOTSTRAP.mean(np.concatenate(runs, axis=1))
        assert found.value == beside.value and 0 <= found.low < found.high <= 1
        held += found.low <= truth <= found.high
        nested += beside.low <= truth <= beside.high
    assert held / 400 >= 0.9
    assert nested / 400 <= nested_at_most


def test_differences_of_several_training_seeds_keep_their_level() -> None:
    """Two recipes of the same share, trained three times each: p below 0.05 in about a twentieth, not in half of the tries."""
    rng = np.random.default_rng(1)
    found = 0
    for _ in range(200):
        both = simulated(rng, 0.3, 0.4, runs=6)
        estimate, p = CROSSED.difference(both[:3], both[3:])
        assert (p < 0.05) == (estimate.low > 0 or estimate.high < 0)
        found += p < 0.05
    assert found / 200 <= 0.1


def test_runs_that_differ_alike_on_every_triple_have_students_interval() -> None:
    """No variance between triples: mean ± t · s / √R of the runs' figures, and the p of their t test."""
    values = np.array([0.3, 0.1, 0.25])
    runs = [np.full((40, 2), value) for value in values]
    found, p = CROSSED.difference(runs, [np.zeros((40, 2))] * 3)
    expected = stats.ttest_1samp(values, 0)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert p == pytest.approx(expected.pvalue) and found.count == 3 * 80


def test_runs_that_agree_are_as_sure_as_one() -> None:
    """Copies of a run add nothing; a single run has the bootstrap's own interval, and McNemar's p."""
    rng = np.random.default_rng(2)
    one = (rng.random((60, 3)) < rng.beta(2, 2, (60, 1))).astype(float)
    alone, copied = CROSSED.mean([one]), CROSSED.mean([one] * 3)
    assert alone == BOOTSTRAP.mean(one)
    assert copied.high - copied.low == pytest.approx(alone.high - alone.low, rel=0.1)
    assert (copied.value, copied.count) == (alone.value, 3 * alone.count)
    nothing, p = CROSSED.difference([one] * 3, [one] * 3)
    assert (nothing.value, nothing.low, nothing.high, p) == (0.0, 0.0, 0.0, 1.0)


def test_a_ratio_has_the_interval_of_its_logarithm() -> None:
    values = np.array([2.0, 3.0, 4.0])
    runs, unit = [np.full((30, 1), value) for value in values], [np.ones((30, 1))] * 3
    found = CROSSED.function(lambda means: means[0] / means[1], [runs, unit], LOG)
    reach = stats.t.ppf(0.975, 2) * values.std(ddof=1) / np.sqrt(3) / 3.0
    assert (found.value, found.low, found.high) == pytest.approx((3.0, 3 * np.exp(-reach), 3 * np.exp(reach)))


def test_a_figure_that_runs_lack_has_no_interval() -> None:
    """No image decided in any run, in all but one, or all of them right."""
    decided, nothing = np.tile([[1.0], [0.0]], (10, 2)), np.full((20, 2), np.nan)
    none, only = CROSSED.mean([nothing] * 3), CROSSED.mean([decided, nothing, nothing])
    assert np.isnan([none.value, none.low, none.high]).all() and none.count == 0
    assert only.value == 0.5 and np.isnan([only.low, only.high]).all() and only.count == 40
    assert np.isnan(CROSSED.difference([nothing] * 2, [decided] * 2)[1])
    certain = CROSSED.mean([np.ones((20, 2))] * 3)
    exact = stats.binomtest(20, 20).proportion_ci(0.95, "exact")
    assert (certain.low, certain.high) == pytest.approx((exact.low, exact.high))
