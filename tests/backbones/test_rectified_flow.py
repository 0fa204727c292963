"""The flow's formulas are inverse to one another, its times and steps those of diffusers, its draws functions of their keys."""

import itertools
import math

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from diffusers.utils.torch_utils import randn_tensor

from sgpipe.backbones.rectified_flow import (
    dynamic_mu,
    euler_step,
    euler_times,
    generator,
    interpolate,
    logit_normal_times,
    noise,
    uniform_times,
    velocity_target,
)
from sgpipe.errors import ModelError

SCHEDULERS = {
    "schnell": {"shift": 1.0},
    "static": {"shift": 3.0},
    "dev": {"use_dynamic_shifting": True, "shift": 3.0},
    "linear": {"use_dynamic_shifting": True, "time_shift_type": "linear", "base_shift": 0.7, "max_shift": 2.0},
}


def test_interpolation_ends_at_data_and_noise_and_its_slope_is_the_target():
    z, eps = torch.randn(3, 4, 6, 6, dtype=torch.float64), torch.randn(3, 4, 6, 6, dtype=torch.float64)
    t = torch.tensor([0.0, 1.0, 0.3], dtype=torch.float64)
    at = interpolate(z, eps, t)
    assert torch.equal(at[0], z[0]) and torch.equal(at[1], eps[1])
    slope = (interpolate(z, eps, t + 1e-3) - at) / 1e-3
    torch.testing.assert_close(slope, velocity_target(z, eps), atol=1e-9, rtol=0)


def test_one_euler_step_along_the_exact_velocity_reaches_any_other_time():
    z, eps = torch.randn(1, 4, 4), torch.randn(1, 4, 4)
    start, end = (interpolate(z, eps, torch.tensor([t])) for t in (0.9, 0.2))
    torch.testing.assert_close(euler_step(start, velocity_target(z, eps), 0.9, 0.2), end)


TERMINAL = {"use_dynamic_shifting": True, "shift_terminal": 0.02, "max_shift": 0.9}


@pytest.mark.parametrize(
    ("config", "steps"), [*itertools.product(SCHEDULERS.values(), (1, 4, 28)), *((TERMINAL, steps) for steps in (2, 4, 28))]
)
@pytest.mark.parametrize("tokens", [64, 1024, 4096])
def test_times_and_steps_are_those_of_the_scheduler(config, steps, tokens):
    scheduler = FlowMatchEulerDiscreteScheduler(**config)
    mu = calculate_shift(tokens, 256, 4096, scheduler.config.base_shift, scheduler.config.max_shift)
    assert dynamic_mu(tokens, scheduler.config) == mu
    scheduler.set_timesteps(steps, sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
    times = euler_times(steps, tokens, scheduler.config)
    np.testing.assert_array_equal(times, scheduler.sigmas.numpy())
    for dtype in (torch.float32, torch.bfloat16):
        scheduler.set_begin_index(0)
        scheduler._step_index = None
        mine = theirs = torch.randn(2, 5, generator=generator(1)).to(dtype)
        for i, (t, t_next) in enumerate(itertools.pairwise(times)):
            velocity = torch.randn(2, 5, generator=generator(2, i)).to(dtype)
            mine = euler_step(mine, velocity, t, t_next)
            theirs = scheduler.step(velocity, scheduler.timesteps[i], theirs, return_dict=False)[0]
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("strange", [{"use_karras_sigmas": True}, {"stochastic_sampling": True}, {"invert_sigmas": True}])
def test_other_schedulers_are_refused_by_name(strange):
    with pytest.raises(ModelError, match=next(iter(strange))):
        euler_times(4, 64, FlowMatchEulerDiscreteScheduler(**strange).config)


def test_too_few_steps_are_refused():
    """diffusers stretches one time to `shift_terminal` by 0/0, and its pipeline's image is NaN."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift_terminal=0.02)
    with np.errstate(invalid="ignore"):
        scheduler.set_timesteps(1, sigmas=np.array([1.0]))
    assert scheduler.sigmas[0].isnan()
    assert euler_times(2, 64, scheduler.config).tolist() == pytest.approx([1.0, 0.02, 0.0])
    with pytest.raises(ModelError, match="steps: got 1; this scheduler needs at least 2"):
        euler_times(1, 64, scheduler.config)
    assert euler_times(1, 64, FlowMatchEulerDiscreteScheduler().config).tolist() == [1.0, 0.0]
    with pytest.raises(ModelError, match="steps: got 0; this scheduler needs at least 1"):
        euler_times(0, 64, FlowMatchEulerDiscreteScheduler().config)


def test_noise_is_that_of_diffusers_and_depends_on_its_seed_alone():
    seeds = [5, 6, 7]
    theirs = randn_tensor((3, 4, 2, 2), generator=[torch.Generator().manual_seed(seed) for seed in seeds])
    assert torch.equal(noise(seeds, (4, 2, 2)), theirs)
    assert torch.equal(noise([7, 5], (4, 2, 2)), theirs[[2, 0]])


def test_draws_are_functions_of_their_key():
    first = uniform_times(4, 0.5, 1.0, generator(0, 17))
    assert torch.equal(first, uniform_times(4, 0.5, 1.0, generator(0, 17)))
    keys = [(0, 18), (1, 17), (0, "17"), (17, 0), (0, 1, 7)]
    assert all(not torch.equal(first, uniform_times(4, 0.5, 1.0, generator(*key))) for key in keys)


def test_times_have_the_distribution_they_are_named_after():
    uniform = uniform_times(20_000, 0.5, 0.8, generator("uniform"))
    assert uniform.min() >= 0.5 and uniform.max() < 0.8
    quantiles = torch.quantile(uniform, torch.tensor([0.25, 0.5, 0.75]))
    torch.testing.assert_close(quantiles, torch.tensor([0.575, 0.65, 0.725]), atol=0.01, rtol=0)
    logit = torch.logit(logit_normal_times(20_000, 0.5, 2.0, generator("normal")).double())
    assert math.isclose(logit.mean(), 0.5, abs_tol=0.05) and math.isclose(logit.std(), 2.0, abs_tol=0.05)
