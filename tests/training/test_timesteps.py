"""What is random is a function of (seed, step), and has the distribution asked for."""

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

from sgpipe.backbones.rectified_flow import euler_times, generator
from sgpipe.errors import ParamsError
from sgpipe.training.config import Conditions, Times
from sgpipe.training.timesteps import bin_names, bin_of, conditions_of, even_times, rows_of, sampler_times, times_of


@pytest.mark.parametrize("size, batch", [(7, 3), (10, 4), (3, 8)])
def test_every_pass_takes_every_row_once_however_it_is_cut(size: int, batch: int) -> None:
    rows = [row for start in range(0, 5 * size * batch, batch) for row in rows_of(start, batch, size, 1)]
    passes = [rows[start : start + size] for start in range(0, len(rows) - size + 1, size)]
    assert all(sorted(each) == list(range(size)) for each in passes)
    assert passes[0] != passes[1] and rows_of(0, 5 * size, size, 1) == rows[: 5 * size]
    assert rows_of(0, 5 * size, size, 2) != rows[: 5 * size]


def test_conditions_come_with_their_probabilities() -> None:
    drawn = conditions_of(4000, Conditions(neutral=0.5, relational=0.3, wrong=0.2), generator("c"))
    shares = {name: drawn.count(name) / 4000 for name in set(drawn)}
    assert shares == pytest.approx({"neutral": 0.5, "relational": 0.3, "wrong": 0.2}, abs=0.03)
    with pytest.raises(ValueError, match=r"together 0\.8; the probabilities must sum to 1"):
        Conditions(neutral=0.8)


def test_times_keep_their_bounds_and_density() -> None:
    uniform = times_of(4000, Times(low=0.7), generator("u"))
    assert uniform.min() >= 0.7 and uniform.max() < 1 and uniform.mean().item() == pytest.approx(0.85, abs=0.01)
    skewed = times_of(4000, Times(density="logit_normal", low=0.5, mean=2.0, deviation=0.5), generator("n"))
    assert skewed.min() >= 0.5 and skewed.max() < 1
    assert skewed.median().item() == pytest.approx(0.5 + 0.5 / (1 + torch.e**-2), abs=0.01)
    grid = torch.tensor([0.5, 0.75, 1.0])
    asked = times_of(4000, Times(density="sampler", low=0.5), generator("s"), grid)
    shares = [float((asked == t).float().mean()) for t in grid]
    assert sum(shares) == pytest.approx(1) and shares == pytest.approx([1 / 3] * 3, abs=0.03)
    even = even_times(100, Times(low=0.5))
    assert even.sort().values.tolist() == pytest.approx([0.5 + 0.005 * (i + 0.5) for i in range(100)])
    assert not torch.equal(even, even.sort().values)
    turns = even_times(90, Times(density="sampler", low=0.5), grid)
    assert turns.unique(return_counts=True)[1].tolist() == [30, 30, 30]
    assert not torch.equal(turns, turns.sort().values)


@pytest.mark.parametrize("tokens", [16, 256, 4096])
@pytest.mark.parametrize("config", [{"shift": 1.0}, {"shift": 3.0}, {"use_dynamic_shifting": True, "shift": 3.0}], ids=str)
def test_a_sampler_is_met_at_the_sigmas_of_its_scheduler(config: dict[str, Any], tokens: int) -> None:
    """FLUX.1-dev shifts them by the number of image tokens, others by a constant."""
    scheduler = FlowMatchEulerDiscreteScheduler(**config)
    mu = calculate_shift(tokens, 256, 4096, scheduler.config.base_shift, scheduler.config.max_shift)
    scheduler.set_timesteps(28, sigmas=np.linspace(1.0, 1 / 28, 28), mu=mu)
    found = sampler_times(Times(density="sampler", low=0.5, high=0.9, steps=28), euler_times(28, tokens, scheduler.config))
    wanted = [t for t in scheduler.sigmas.tolist() if 0.5 <= t <= 0.9]
    assert found.dtype == torch.float32 and found.tolist() == wanted[::-1] and len(wanted) > 3


def test_a_scheduler_without_shift_is_met_at_even_times() -> None:
    """To the bit, also where float32 rounds a time below the bound that it stands for."""
    of_four = sampler_times(Times(density="sampler", low=0.7), euler_times(4, 16, {"shift": 1.0}))
    assert torch.equal(of_four, torch.tensor([0.75, 1.0]))
    of_ten = sampler_times(Times(density="sampler", low=0.7, high=0.9, steps=10), euler_times(10, 16, {"shift": 1.0}))
    assert of_ten.tolist() == pytest.approx([0.7, 0.8, 0.9])
    with pytest.raises(ParamsError, match=r"train\.times\.steps: got 4, .* 1, 0\.9, 0\.75, 0\.5.* within 0\.8 to 0\.85"):
        sampler_times(Times(density="sampler", low=0.8, high=0.85), euler_times(4, 16, {"shift": 3.0}))


def test_bins_divide_the_range() -> None:
    times = Times(low=0.7, high=1.0)
    assert bin_names(times, 3) == ["t_0.70_0.80", "t_0.80_0.90", "t_0.90_1.00"]
    assert bin_of(torch.tensor([0.7, 0.79, 0.81, 0.95, 1.0]), times, 3).tolist() == [0, 0, 1, 2, 2]
