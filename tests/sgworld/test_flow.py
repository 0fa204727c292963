"""What a step of the generator's training learns from: straight lines to pictures, and where its own steps lead."""

import numpy as np
import pytest
import torch
from torch import Tensor

from sgworld.bank import Bank
from sgworld.coupling import Coupling
from sgworld.flow import STEPS, draw_states, flow_loss, rolled_counts, time_weights

BATCH = 48


@pytest.fixture
def coupling() -> Coupling:
    """Two pictures of one caption, opposite to one another."""
    triples = [("dog", "touching", "cat"), ("cat", "touching", "dog")]
    latents = np.stack([np.full((2, 3), 2.0), np.full((2, 3), -2.0)]).astype(np.float16)
    return Coupling(Bank(np.array([0, 1], np.uint8).reshape(2, 1, 1, 1), triples), latents)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def still(states: Tensor, times: Tensor, first: int) -> Tensor:
    return torch.zeros_like(states)


def test_a_third_of_a_batch_each_is_led_by_no_step_one_step_and_more() -> None:
    assert rolled_counts(48) == (32, 16, 8)
    assert rolled_counts(1) == (1, 0, 0)


def test_states_that_are_not_rolled_lie_on_lines_from_noise_to_their_pictures(coupling: Coupling) -> None:
    states, targets, times = draw_states(generator(), still, coupling, np.zeros(BATCH, np.int64))
    plain = BATCH - rolled_counts(BATCH)[0]
    at = times[:plain, None, None]
    noise = (states[:plain] - (1 - at) * targets[:plain]) / at
    assert abs(float(noise.std()) - 1) < 0.15
    assert float(times.min()) > 0 and float(times.max()) == 1
    assert 0.3 < float((times[:plain] == 1).float().mean()) < 0.9


def test_rolled_states_are_where_euler_steps_lead_and_aim_at_the_picture_predicted_before(coupling: Coupling) -> None:
    """A model that always predicts the first picture leads every state there, whatever its noise means."""
    first = torch.full((2, 3), 2.0)
    asked: list[tuple[int, float]] = []

    def certain(states: Tensor, times: Tensor, begins: int) -> Tensor:
        asked.append((begins, float(times[0])))
        assert torch.equal(times, times[:1].expand(len(states)))
        return (states - first) / times[:, None, None]

    captions = np.zeros(BATCH, np.int64)
    states, targets, times = draw_states(generator(), certain, coupling, captions)
    noise = coupling.draw(generator(), captions)[1]
    assert asked == [(16, 1.0), (32, 0.75), (40, 0.5)]
    for begins, ends, led in ((16, 32, 1), (32, 40, 2), (40, 48, 3)):
        at = 1 - led / STEPS
        assert torch.equal(times[begins:ends], torch.full((ends - begins,), at))
        assert torch.equal(targets[begins:ends], first.expand(ends - begins, 2, 3))
        assert torch.allclose(states[begins:ends], at * noise[begins:ends] + (1 - at) * first, atol=1e-6)


def test_the_loss_is_nought_for_a_velocity_that_ends_in_the_targets(coupling: Coupling) -> None:
    captions = np.zeros(BATCH, np.int64)
    states, targets, times = draw_states(generator(), still, coupling, captions)

    def right(asked: Tensor, at: Tensor, first: int) -> Tensor:
        if len(asked) < BATCH:
            return still(asked, at, first)
        assert torch.equal(asked, states)
        return (states - targets) / times[:, None, None]

    assert float(flow_loss(generator(), right, coupling, captions)) == 0
    assert float(flow_loss(generator(), still, coupling, captions)) > 0.5


def test_weights_are_those_of_the_picture_below_the_samplers_times_and_where_a_state_was_led() -> None:
    times = torch.tensor([0.125, 0.25, 0.5, 1.0])
    assert time_weights(times, torch.tensor(False)).tolist() == [0.25, 1.0, 1.0, 1.0]
    assert time_weights(times, torch.tensor(True)).tolist() == [0.015625, 0.0625, 0.25, 1.0]
