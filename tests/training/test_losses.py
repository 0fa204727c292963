"""Losses against values worked out by hand, and against finite differences."""

import math

import pytest
import torch
from torch import Tensor

from sgpipe.training.objective import (
    bounded_margin,
    graph_dpo,
    preferred,
    relation_ranking,
    relation_weights,
    saliency_weighted,
    sample_losses,
)


def test_the_flow_loss_is_a_mean_of_squares_per_sample() -> None:
    velocity = torch.tensor([[[[1.0, 2.0]]], [[[0.0, 0.0]]]])
    target = torch.tensor([[[[0.0, 4.0]]], [[[3.0, -1.0]]]])
    assert sample_losses(velocity, target).tolist() == [2.5, 5.0]


def test_relation_weights_have_mean_one_and_no_gradient() -> None:
    """σ(0) = 1/2 and σ(ln 3) = 3/4: three patches of the first and one of the second have the mean 9/16."""
    scores = torch.tensor([[[0.0, 0.0], [0.0, math.log(3)]]], requires_grad=True)
    weights = relation_weights(scores, 4, 4)
    assert not weights.requires_grad
    wanted = torch.full((4, 4), 8 / 9)
    wanted[2:, 2:] = 4 / 3
    torch.testing.assert_close(weights[0, 0], wanted)


def test_the_weighted_loss_squares_the_weights_too() -> None:
    velocity, target = torch.tensor([[[[1.0, 3.0]]]]), torch.zeros(1, 1, 1, 2)
    assert saliency_weighted(velocity, target, torch.tensor([[[[2.0, 1.0]]]])).tolist() == [(4 + 9) / 2]
    even = torch.ones(1, 1, 1, 2)
    assert torch.equal(saliency_weighted(velocity, target, even), sample_losses(velocity, target))


def test_ranking_is_a_hinge_on_the_logit_of_the_true_class() -> None:
    """ℓ⁺_y = 2, ℓ⁻_y = 1.5, m = 1: 0.5 is missing. ℓ⁺_y = 5: nothing is."""
    positive = torch.tensor([[9.0, 2.0], [5.0, 0.0]])
    negative = torch.tensor([[0.0, 1.5], [1.0, 8.0]])
    assert relation_ranking(positive, negative, torch.tensor([1, 0]), 1.0).tolist() == [0.5, 0.0]


def test_the_margin_asks_for_no_more_than_m() -> None:
    positive, negative = torch.tensor([1.0, 1.0, 1.0]), torch.tensor([1.0, 1.05, 1.3])
    torch.testing.assert_close(bounded_margin(positive, negative, 0.1), torch.tensor([0.1, 0.05, 0.0]))


def test_dpo_is_ln_2_without_a_preference_and_reads_differences_alone() -> None:
    zero = torch.zeros(1)
    assert graph_dpo(zero, zero, zero, zero, 50.0).item() == pytest.approx(math.log(2))
    found = graph_dpo(torch.tensor([0.5]), torch.tensor([0.9]), torch.tensor([0.6]), torch.tensor([0.8]), 10.0)
    assert found.item() == pytest.approx(math.log(1 + math.exp(-10 / 2 * 0.2)))
    same = graph_dpo(torch.tensor([0.5]), torch.tensor([0.9]), torch.tensor([7.0]), torch.tensor([7.0]), 10.0)
    cancelled = graph_dpo(torch.tensor([0.5]), torch.tensor([0.9]), zero, zero, 10.0)
    torch.testing.assert_close(same, cancelled)


def test_a_tie_is_no_preference() -> None:
    assert preferred(torch.tensor([1.0, 1.0, 2.0]), torch.tensor([1.5, 1.0, 1.0])).tolist() == [True, False, False]


def test_gradients_are_slopes() -> None:
    draw = torch.Generator().manual_seed(0)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64).requires_grad_()

    labels, weights = torch.tensor([0, 2]), torch.rand(2, 1, 4, 4, generator=draw, dtype=torch.float64)
    check = torch.autograd.gradcheck
    assert check(lambda a, b: relation_ranking(a, b, labels, 1.0), (leaf(2, 3), leaf(2, 3)))
    assert check(lambda a, b: bounded_margin(a, b, 0.5), (leaf(5), leaf(5)))
    assert check(lambda a, b, c, d: graph_dpo(a, b, c, d, 3.0), (leaf(4), leaf(4), leaf(4), leaf(4)))
    # these two compute in float32
    for loss in (lambda v, t: sample_losses(v, t), lambda v, t: saliency_weighted(v, t, weights.float())):
        v, t = leaf(2, 3, 4, 4).detach().float().requires_grad_(), leaf(2, 3, 4, 4).detach().float()
        assert check(loss, (v, t), eps=1e-2, atol=2e-2, rtol=2e-2)
