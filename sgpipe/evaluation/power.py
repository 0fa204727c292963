"""What a comparison can tell apart: pairs that are separated, pairs that are equivalent, and the smallest difference it finds.

At each budget every group (of blocks, say) has outcomes of R training seeds on the same triples. Differences have intervals over
training seeds crossed with triples (`Crossed`), with a standard error s and ν degrees of freedom. A pair is *separated* if 0 is
outside at some budget after Holm's adjustment over all pairs and budgets. It is *equivalent* if at every budget both one-sided
t tests reject a difference of `margin` (Schuirmann 1987): since all budgets must, nothing is adjusted within a pair, and Holm's
adjustment is over the pairs. The difference δ found with a given power solves P(|T| > t) = power, T noncentral t of ν degrees
around δ / s, as a mean over χ²_ν.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from itertools import combinations
from typing import Any, Final

import numpy as np
from scipy import optimize, stats

from sgpipe.evaluation.crossed import Crossed, t_test
from sgpipe.evaluation.statistics import Estimate, Floats, holm
from sgpipe.evaluation.summary import bounds
from sgpipe.runs.atomic import plain

Cells = Mapping[str, Mapping[str, Sequence[Floats]]]
"""By budget and group: outcomes 1/0/NaN `[T, S]` of each training seed, the same seeds, triples and sampling seeds throughout."""
_LARGE: Final = 1e6
"""Degrees of freedom above which t is normal."""
_POINTS: Final = 1024


@cache
def _scatter(freedom: float) -> Floats:
    """Estimated over true standard errors, χ_ν / √ν, at `_POINTS` quantiles in the middles of equal parts."""
    if freedom > _LARGE:
        return np.ones(1)
    return np.sqrt(stats.chi2.ppf((np.arange(_POINTS) + 0.5) / _POINTS, freedom) / freedom)


def detection_rate(difference: float, error: float, freedom: float, level: float) -> float:
    """The chance that a two-sided t test at `level` finds a true difference, for its standard error and degrees of freedom."""
    critical = _scatter(freedom) * stats.t.isf(level / 2, freedom if freedom <= _LARGE else np.inf)
    return float((stats.norm.sf(critical - difference / error) + stats.norm.cdf(-critical - difference / error)).mean())


def smallest_difference(error: float, freedom: float, power: float, level: float) -> float:
    """The true difference that such a test finds with the power; 0 without error, NaN where that is not known."""
    if not np.isfinite(error) or not freedom > 0:
        return float("nan")
    if error == 0:
        return 0.0
    upper = error
    while detection_rate(upper, error, freedom, level) < power:
        upper *= 2
    return float(optimize.brentq(lambda d: detection_rate(d, error, freedom, level) - power, 0.0, upper, xtol=1e-9))


def equivalence_p(difference: float, error: float, freedom: float, margin: float) -> float:
    """The larger p value of the two one-sided t tests of |true difference| ≥ `margin`; NaN where the error is not known."""
    if error == 0:
        return float(abs(difference) >= margin)
    return float(stats.t.sf((margin - abs(difference)) / error, freedom if freedom <= _LARGE else np.inf))


def _compared(found: Estimate, error: float, freedom: float, margin: float, power: float, level: float) -> dict[str, float]:
    return {
        **bounds("difference", found),
        "p": t_test(found.value, error, freedom),
        "p_equivalent": equivalence_p(found.value, error, freedom, margin),
        "smallest_difference": smallest_difference(error, freedom, power, level),
    }


def power_figures(cells: Cells, crossed: Crossed, *, margin: float, power: float) -> dict[str, Any]:
    """`budgets.<budget>` with the accuracy of each of its `groups` and the difference of each of its `pairs`; and of all of them:

    `separated_pairs`, `equivalent_pairs` (of the others) and `undecided_pairs`, their numbers; `pairs.<pair>` with the budgets at
    which it is separated, and `p_equivalent` adjusted; `smallest_difference`, the median over pairs and budgets of what a single
    test finds with the power, and `smallest_difference_first`, of what the first step of Holm's procedure finds.
    """
    level = 1 - crossed.bootstrap.confidence
    budgets: dict[str, Any] = {}
    rows: dict[tuple[str, str], dict[str, float]] = {}
    errors: list[tuple[float, float]] = []
    for budget, groups in cells.items():
        pairs: dict[str, Any] = {}
        for one, other in combinations(groups, 2):
            found, error, freedom = crossed.difference_with_error(groups[one], groups[other])
            if not np.isfinite(error):
                continue
            errors.append((error, freedom))
            pairs[f"{one}-{other}"] = rows[f"{one}-{other}", budget] = _compared(found, error, freedom, margin, power, level)
        shown = {name: bounds("accuracy", crossed.mean(runs)) | {"training_seeds": len(runs)} for name, runs in groups.items()}
        budgets[budget] = {"groups": shown, "pairs": pairs}
    for row, adjusted in zip(rows.values(), holm([row["p"] for row in rows.values()]) if rows else [], strict=True):
        row["p_holm"] = adjusted
    by_pair: dict[str, Any] = {}
    for (pair, budget), row in rows.items():
        entry = by_pair.setdefault(pair, {"separated_at": [], "p_equivalent": 0.0})
        entry["separated_at"] += [budget] if row["p_holm"] < level else []
        entry["p_equivalent"] = max(entry["p_equivalent"], row["p_equivalent"])
    left = [entry for entry in by_pair.values() if not entry["separated_at"]]
    for entry, adjusted in zip(left, holm([entry["p_equivalent"] for entry in left]) if left else [], strict=True):
        entry["p_equivalent_holm"] = adjusted
    equivalent = sum(entry["p_equivalent_holm"] < level for entry in left)
    sizes = [smallest_difference(*each, power, level) for each in errors]
    first = [smallest_difference(*each, power, level / len(errors)) for each in errors]
    return plain(
        {
            "budgets": budgets,
            "pairs": by_pair,
            "separated_pairs": len(by_pair) - len(left),
            "equivalent_pairs": equivalent,
            "undecided_pairs": len(left) - equivalent,
            "smallest_difference": float(np.median(sizes)) if sizes else np.nan,
            "smallest_difference_first": float(np.median(first)) if first else np.nan,
            "tests": len(errors),
            "margin": margin,
            "power": power,
        }
    )
