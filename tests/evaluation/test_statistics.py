"""Statistics with known answers, and the identities that hold between them."""

import numpy as np
import pytest
from scipy import stats

from sgpipe.evaluation.statistics import Bootstrap, holm, mcnemar, rogan_gladen, triples_needed

BOOTSTRAP = Bootstrap(resamples=2000, confidence=0.95, seed=0)


def test_interval_of_one_picture_per_triple_is_the_binomial_one() -> None:
    outcome = np.repeat([1.0, 0.0], [60, 40])[:, None]
    found = BOOTSTRAP.mean(outcome)
    assert (found.value, found.count) == (0.6, 100)
    assert found.low == pytest.approx(stats.binom.ppf(0.025, 100, 0.6) / 100, abs=0.015)
    assert found.high == pytest.approx(stats.binom.ppf(0.975, 100, 0.6) / 100, abs=0.015)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_share_without_an_exception_is_not_certain(share: float) -> None:
    """Clopper–Pearson over triples, as scipy computes it; the images of a triple add nothing."""
    found = BOOTSTRAP.mean(np.full((20, 3), share))
    exact = stats.binomtest(int(20 * share), 20).proportion_ci(0.95, "exact")
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high))
    assert found.value == share and found.count == 60


def test_pictures_of_a_triple_that_agree_count_as_one() -> None:
    """Three copies of each triple's outcome leave the interval as wide; as independent triples they would narrow it by √3."""
    one = np.random.default_rng(0).integers(0, 2, (60, 1)).astype(float)
    single, copied, apart = (BOOTSTRAP.mean(each) for each in (one, np.tile(one, 3), np.tile(one, (3, 1))))
    assert copied.high - copied.low == pytest.approx(single.high - single.low, rel=0.1)
    assert apart.high - apart.low == pytest.approx((single.high - single.low) / np.sqrt(3), rel=0.15)


def test_intervals_cover_the_truth_at_their_rate() -> None:
    """Triples of different difficulty, three images each, a third of them undecided: 95 % within the error of 200 tries."""
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        ease = rng.beta(2, 2, (80, 1))
        outcome = (rng.random((80, 3)) < ease).astype(float)
        outcome[rng.random((80, 3)) < 1 / 3] = np.nan
        found = Bootstrap(300, 0.95, 0).mean(outcome)
        covered += found.low <= 0.5 <= found.high
    assert 0.90 <= covered / 200 <= 1.0


def test_differences_are_paired() -> None:
    """Arms that agree on every image differ by nothing, with no interval around it; undecided images do not count."""
    outcome = np.random.default_rng(2).integers(0, 2, (50, 3)).astype(float)
    outcome[::4] = np.nan
    same = BOOTSTRAP.difference(outcome, outcome)
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)
    assert same.count == np.isfinite(outcome).sum()
    nothing = BOOTSTRAP.mean(np.full((4, 3), np.nan))
    assert np.isnan(nothing.value) and nothing.count == 0


def test_the_seed_decides_the_interval() -> None:
    outcome = np.random.default_rng(3).integers(0, 2, (40, 3)).astype(float)
    assert BOOTSTRAP.mean(outcome) == BOOTSTRAP.mean(outcome)
    assert BOOTSTRAP.mean(outcome) != Bootstrap(2000, 0.95, 1).mean(outcome)


def test_mcnemar_of_a_textbook_table() -> None:
    """b = 121, c = 59 (Agresti 2013, §11.1 gives such tables): χ² = 62² / 180; one image per triple is the plain test."""
    first = np.repeat([1.0, 0.0, 1.0, 0.0], [121, 59, 100, 50])[:, None]
    second = np.repeat([0.0, 1.0, 1.0, 0.0], [121, 59, 100, 50])[:, None]
    found = mcnemar(first, second)
    assert (found.first_only, found.second_only) == (121, 59)
    assert found.clustered == pytest.approx(stats.chi2.sf(62**2 / 180, 1))
    assert found.exact == pytest.approx(stats.binomtest(121, 180).pvalue)


def test_mcnemar_is_not_fooled_by_pictures_that_agree() -> None:
    one = np.repeat([1.0, 0.0], [14, 6])[:, None]
    other = 1 - one
    single, copied = mcnemar(one, other), mcnemar(np.tile(one, 3), np.tile(other, 3))
    assert copied.clustered == pytest.approx(single.clustered)
    assert copied.exact < single.exact
    assert mcnemar(one, one).clustered == mcnemar(one, one).exact == 1.0
    assert (single.difference, mcnemar(other, one).difference) == pytest.approx((0.4, -0.4))
    nothing = mcnemar(one, np.full_like(one, np.nan))
    assert (nothing.first_only, nothing.second_only) == (0, 0)
    assert np.isnan([nothing.difference, nothing.exact, nothing.clustered]).all()


def test_the_signed_difference_is_that_of_the_test() -> None:
    """One triple won in its only pair, one lost in one of three: pairs alone say a draw, the test weighs triples alike."""
    first = np.array([[1.0, np.nan, np.nan], [0.0, 1.0, 1.0]])
    second = np.array([[0.0, 1.0, 1.0], [1.0, 1.0, 1.0]])
    found = mcnemar(first, second)
    assert (found.first_only, found.second_only) == (1, 1)
    assert found.difference == pytest.approx((1 - 1 / 3) / 2)
    assert found.clustered == pytest.approx(stats.chi2.sf((2 / 3) ** 2 / (1 + 1 / 9), 1))


def test_holm_steps_down() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02] and holm([]) == []


@pytest.mark.parametrize("share", [0.6, 0.55, 0.3])
def test_triples_needed_is_the_first_size_of_enough_power(share: float) -> None:
    def power(n: int) -> float:
        """Of the exact test, by adding up the outcomes that it rejects."""
        chance = stats.binom.pmf(np.arange(n + 1), n, share)
        rejected = [2 * min(stats.binom.cdf(k, n, 0.5), stats.binom.sf(k - 1, n, 0.5)) <= 0.05 for k in range(n + 1)]
        return float(chance[rejected].sum())

    needed = triples_needed(share)
    assert needed is not None and power(needed) >= 0.8 > power(needed - 1)
    assert {0.6: 199, 0.55: 786, 0.3: 49}[share] == needed


def test_triples_needed_of_no_effect() -> None:
    assert triples_needed(0.5) is None and triples_needed(0.5001) is None


def test_rogan_gladen_undoes_a_judges_errors() -> None:
    for true in (0.0, 0.3, 1.0):
        apparent = true * 0.9 + (1 - true) * (1 - 0.8)
        assert rogan_gladen(apparent, 0.9, 0.8) == pytest.approx(true)
    assert rogan_gladen(0.37, 1.0, 1.0) == pytest.approx(0.37)
    assert rogan_gladen(0.05, 0.9, 0.8) == 0.0
    assert np.isnan(rogan_gladen(0.5, 0.5, 0.5)) and np.isnan(rogan_gladen(0.5, float("nan"), 0.9))
