"""The power of a comparison, on outcomes whose groups, variances and differences are known."""

import numpy as np
import pytest
from scipy import stats

from sgpipe.evaluation.crossed import Crossed
from sgpipe.evaluation.power import Cells, detection_rate, equivalence_p, power_figures, smallest_difference
from sgpipe.evaluation.statistics import Bootstrap, Floats

CROSSED = Crossed(Bootstrap(200, 0.95, 0))


def test_the_smallest_difference_of_a_normal_test_is_that_of_the_textbook() -> None:
    """(z(0.975) + z(0.8)) standard errors; without error every difference is found."""
    assert smallest_difference(0.1, np.inf, 0.8, 0.05) == pytest.approx(
        0.1 * (stats.norm.ppf(0.975) + stats.norm.ppf(0.8)), rel=1e-4
    )
    assert smallest_difference(0.0, 4, 0.8, 0.05) == 0 and np.isnan(smallest_difference(np.nan, 4, 0.8, 0.05))
    assert smallest_difference(0.1, 4, 0.8, 0.05 / 60) > 2 * smallest_difference(0.1, 4, 0.8, 0.05)
    assert detection_rate(0.0, 0.1, 4, 0.05) == pytest.approx(0.05, rel=1e-3)


@pytest.mark.parametrize("freedom", [4.0, 12.0])
def test_simulated_tests_find_the_smallest_difference_as_often_as_asked(freedom: float) -> None:
    rng, error = np.random.default_rng(0), 0.02
    difference = smallest_difference(error, freedom, 0.8, 0.05)
    estimates = difference + error * rng.normal(size=200_000)
    errors = error * np.sqrt(rng.chisquare(freedom, 200_000) / freedom)
    found = np.abs(estimates / errors) > stats.t.ppf(0.975, freedom)
    assert found.mean() == pytest.approx(0.8, abs=0.005)


def test_equivalence_is_the_interval_of_twice_the_level_within_the_margin() -> None:
    for difference, error in ((0.01, 0.005), (-0.01, 0.02), (0.02, 0.004)):
        inside = abs(difference) + stats.t.ppf(0.95, 6) * error < 0.03
        assert (equivalence_p(difference, error, 6, 0.03) < 0.05) == inside
    assert equivalence_p(0.03, 0.01, 6, 0.03) == pytest.approx(0.5)
    assert (equivalence_p(0.01, 0.0, 6, 0.03), equivalence_p(0.04, 0.0, 6, 0.03)) == (0, 1)


def outcomes(rng: np.random.Generator, shares: list[float], triples: int = 400) -> list[Floats]:
    """A run per share, as independent images of these triples."""
    return [(rng.random((triples, 1)) < share).astype(float) for share in shares]


def cells(budgets: dict[str, dict[str, list[float]]], triples: int = 400) -> Cells:
    rng = np.random.default_rng(1)
    return {budget: {name: outcomes(rng, shares, triples) for name, shares in groups.items()} for budget, groups in budgets.items()}


def test_what_differs_at_one_budget_is_separated_and_what_never_does_is_equivalent() -> None:
    alike, better = [0.6] * 5, [0.8] * 5
    before = {"early": alike, "late": alike, "all": alike}
    runs = cells({"50 steps": before, "400 steps": {**before, "all": better}})
    figures = power_figures(runs, CROSSED, margin=0.1, power=0.8)
    assert figures["pairs"]["early-all"]["separated_at"] == figures["pairs"]["late-all"]["separated_at"] == ["400 steps"]
    assert figures["pairs"]["early-late"]["separated_at"] == []
    assert (figures["separated_pairs"], figures["equivalent_pairs"], figures["undecided_pairs"], figures["tests"]) == (2, 1, 0, 6)
    row = figures["budgets"]["400 steps"]["pairs"]["early-all"]
    assert (
        row["difference"] == pytest.approx(-0.2, abs=0.04)
        and row["difference_low"] < row["difference"] < row["difference_high"] < 0
    )
    assert row["p_holm"] == pytest.approx(6 * row["p"], rel=0.5) and row["p_holm"] < 0.05 < row["p_equivalent"]
    assert figures["budgets"]["400 steps"]["groups"]["all"]["accuracy"] == pytest.approx(0.8, abs=0.03)
    expected = smallest_difference(np.sqrt(2 * 0.6 * 0.4 / 2000), np.inf, 0.8, 0.05)
    assert figures["smallest_difference"] == pytest.approx(expected, rel=0.6)
    assert figures["smallest_difference"] < figures["smallest_difference_first"]
    narrow = power_figures(cells({"50 steps": {"early": alike, "late": alike}}), CROSSED, margin=0.001, power=0.8)
    assert (narrow["separated_pairs"], narrow["equivalent_pairs"], narrow["undecided_pairs"]) == (0, 0, 1)


def test_training_seeds_are_crossed_with_triples_and_not_pooled_into_them() -> None:
    """Seeds that scatter by 0.2 about the same share separate nothing, though the bootstrap of all their images would."""
    runs = cells({"b": {"one": [0.9, 0.9, 0.5, 0.9, 0.5], "other": [0.5, 0.5, 0.9, 0.5, 0.9]}}, 800)
    figures = power_figures(runs, CROSSED, margin=0.03, power=0.8)
    assert figures["separated_pairs"] == 0 and figures["undecided_pairs"] == 1
    pooled = CROSSED.bootstrap.difference(*(np.concatenate(each, axis=1) for each in runs["b"].values()))
    assert pooled.low > 0, "the interval that forgets the seeds"
    assert figures["smallest_difference"] > 0.3


def test_holm_is_over_all_pairs_and_budgets() -> None:
    """One of 30 tests at p ≈ 0.01 separates nothing."""
    rng = np.random.default_rng(3)
    shift = 2.6 * np.sqrt(2 * 0.25 / (5 * 300))
    named = {f"{number}": {"a": [0.5] * 5, "b": [0.5 + shift * (number == 0)] * 5} for number in range(30)}
    runs = {budget: {name: outcomes(rng, shares, 300) for name, shares in groups.items()} for budget, groups in named.items()}
    figures = power_figures(runs, CROSSED, margin=0.03, power=0.8)
    least = min(figures["budgets"][budget]["pairs"]["a-b"]["p"] for budget in named)
    assert least < 0.05 and figures["separated_pairs"] == 0 and figures["tests"] == 30


def test_a_single_training_seed_compares_nothing() -> None:
    figures = power_figures(cells({"b": {"one": [0.5], "other": [0.9]}}), CROSSED, margin=0.03, power=0.8)
    assert figures["tests"] == 0 and figures["smallest_difference"] is None and figures["budgets"]["b"]["pairs"] == {}
