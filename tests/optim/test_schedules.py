"""Schedules: from their formulas, and golden factors that trained weights depend on to the bit."""

import math
from itertools import pairwise

import pytest

from sgpipe.optim.schedules import one_cycle, trapezoid, warmup_then


@pytest.mark.parametrize("steps", [1, 2, 4, 9, 100])
def test_one_cycle_rises_to_one_and_falls(steps: int) -> None:
    rates = [one_cycle(step, steps) for step in range(steps)]
    top = rates.index(1.0)
    assert rates[: top + 1] == sorted(rates[: top + 1]) and rates[top:] == sorted(rates[top:], reverse=True)
    assert min(rates) > 0 and max(rates) == 1 and top == max(0, steps // 5 - 1)


@pytest.mark.parametrize("shape", ["constant", "linear", "cosine"])
def test_a_warm_up_is_followed_by_the_shape(shape: str) -> None:
    rates = [warmup_then(shape, step, 10, 2) for step in range(10)]  # type: ignore[arg-type]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[2:] == sorted(rates[2:], reverse=True) and rates[6] == {"constant": 1.0}.get(shape, pytest.approx(0.5))
    assert (rates[9] == 1.0) == (shape == "constant")
    assert warmup_then(shape, 0, 10, 0) == 1.0  # type: ignore[arg-type]


def test_a_trapezoid_rises_stays_and_falls() -> None:
    rates = [trapezoid(step, 10, (100 - step) / 20) for step in range(100)]
    assert rates[0] == 0.1 and rates[9:81] == [1.0] * 72
    assert all(a > b for a, b in pairwise(rates[80:])) and rates[90] == 0.5 and rates[99] == 0.05


def test_factors_that_weights_depend_on_are_the_same_to_the_bit() -> None:
    assert warmup_then("cosine", 5, 12, 2) == 0.5 * (1 + math.cos(math.pi * (3 / 10)))
    assert one_cycle(37, 61) == 0.5 * (1 + math.cos((math.pi * 25) / 49))
    assert trapezoid(40, 2, (1 - 40 / 45) / 0.4) == (1 - 40 / 45) / 0.4 != (45 - 40) / (0.4 * 45)
