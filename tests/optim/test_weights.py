"""Averages and the best weights."""

import torch
from torch import nn

from sgpipe.optim.weights import Average, Best, tensors_of


def test_an_average_is_the_recursion_with_a_window_that_grows() -> None:
    """By hand in float64; the window stops growing at `decay`."""
    values = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    for first in (0, 1):
        average = Average({"a": values[0]}, 0.6, first=first)
        expected = values[0].double()
        for step, value in enumerate(values[1:], 1):
            n = step - 1 + first
            decay = min(0.6, (1 + n) / (10 + n))
            expected = decay * expected + (1 - decay) * value.double()
            average.update({"a": value}, step)
            torch.testing.assert_close(average.values["a"].double(), expected, atol=1e-6, rtol=1e-5)


def test_an_average_of_what_does_not_move_is_itself() -> None:
    weight = nn.Parameter(torch.randn(5))
    average = Average({"a": weight}, 0.9)
    for step in range(1, 20):
        average.update({"a": weight}, step)
    assert torch.equal(average.values["a"], weight)


def test_the_best_is_kept_with_its_buffers_and_an_equal_score_is_no_better() -> None:
    model = nn.BatchNorm1d(1)
    best = Best(tensors_of(model))
    offered = [((0.5, -1.0), True), ((0.5, -0.5), True), ((0.5, -0.5), False), ((0.4, 9.0), False)]
    for at, (score, better) in enumerate(offered, 1):
        model.weight.data.fill_(at)
        model.running_mean.fill_(at)
        assert best.offer(score, at) is better
    assert (best.score, best.at) == ((0.5, -0.5), 2)
    best.restore()
    assert model.weight.item() == 2 and model.running_mean.item() == 2
