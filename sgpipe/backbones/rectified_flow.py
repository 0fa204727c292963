"""Rectified flow (Liu et al. 2023) as pure functions: z_t = (1 − t) z_0 + t ε, velocity v = ε − z_0, t from 0 (data) to 1 (noise).

Random numbers come from generators that are functions of a key such as (seed, step) or (seed, sample id), so that a resumed
run, another batch size or another order draws the same ones.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sgpipe.errors import ModelError


def generator(*key: int | str) -> torch.Generator:
    """A CPU generator whose numbers depend on the key alone, on every machine."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def interpolate(latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """z_t = (1 − t) z_0 + t ε for latents and noise `[B, …]` at times `[B]`."""
    at = t.to(latents.device).reshape(-1, *(1,) * (latents.ndim - 1))
    return (1 - at) * latents + at * noise


def velocity_target(latents: Tensor, noise: Tensor) -> Tensor:
    """dz_t/dt = ε − z_0, what the transformer is trained to predict at every t."""
    return noise - latents


def uniform_times(count: int, low: float, high: float, random: torch.Generator) -> Tensor:
    """Times `[count]`, float32, uniform on [low, high)."""
    return low + (high - low) * torch.rand(count, generator=random)


def logit_normal_times(count: int, mean: float, deviation: float, random: torch.Generator) -> Tensor:
    """Times `[count]`, float32, whose logits are normal (Esser et al. 2024, eq. 19)."""
    return torch.sigmoid(mean + deviation * torch.randn(count, generator=random))


def noise(seeds: Sequence[int], shape: tuple[int, ...]) -> Tensor:
    """ε `[B, *shape]`, float32, on the CPU; row i depends on `seeds[i]` alone and equals what diffusers draws for that seed."""
    return torch.cat([torch.randn(1, *shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def dynamic_mu(tokens: int, scheduler: Mapping[str, Any]) -> float:
    """The shift's exponent for an image of so many tokens: linear from `base_shift` to `max_shift` (FLUX's `get_lin_function`)."""
    first, last = scheduler["base_image_seq_len"], scheduler["max_image_seq_len"]
    slope = (scheduler["max_shift"] - scheduler["base_shift"]) / (last - first)
    return tokens * slope + (scheduler["base_shift"] - slope * first)


_SLACK = 1e-4
_REFUSED = (
    "invert_sigmas", "stochastic_sampling", "use_beta_sigmas", "use_exponential_sigmas", "use_karras_sigmas",
)  # fmt: skip


def scheduler_times(steps: int, scheduler: Mapping[str, Any], **how: Any) -> NDArray[np.float32]:
    """The times `[steps + 1]` between which a FlowMatchEulerDiscreteScheduler of this configuration steps; `how` it sets them.

    Raises `ModelError` for one that is not stepped as an Euler integrator of the flow, or too few steps: one with
    `shift_terminal`, the last time, needs two (diffusers divides 0 by 0 for one, and samples NaN).
    """
    from diffusers import FlowMatchEulerDiscreteScheduler

    if steps < (fewest := 2 if scheduler.get("shift_terminal") else 1):
        raise ModelError(f"steps: got {steps}; this scheduler needs at least {fewest}")
    kind = scheduler.get("_class_name", "FlowMatchEulerDiscreteScheduler")
    strange = [name for name in _REFUSED if scheduler.get(name)]
    if kind != "FlowMatchEulerDiscreteScheduler" or strange:
        raise ModelError(
            f"scheduler: {kind} with {', '.join(strange) or 'its settings'} is not sampled here; valid: a "
            "FlowMatchEulerDiscreteScheduler with shift or use_dynamic_shifting"
        )
    made = FlowMatchEulerDiscreteScheduler.from_config(dict(scheduler))
    made.set_timesteps(steps, **how)
    return made.sigmas.numpy().astype(np.float32)


def euler_times(steps: int, tokens: int, scheduler: Mapping[str, Any]) -> NDArray[np.float32]:
    """The times `[steps + 1]`, from 1 to 0, between which `FluxPipeline` steps with this configuration of its scheduler.

    Evenly spaced times t = 1, …, 1/steps are shifted to s t / (1 + (s − 1) t): s is `shift`, or with `use_dynamic_shifting`
    exp(μ) (or μ, if linear) for the number of image tokens. Raises `ModelError` as `scheduler_times`.
    """
    mu = dynamic_mu(tokens, scheduler) if scheduler.get("use_dynamic_shifting") else None
    return scheduler_times(steps, scheduler, sigmas=np.linspace(1.0, 1 / max(steps, 1), steps), mu=mu)


def is_within(t: float, low: float, high: float) -> bool:
    """Whether a time of a scheduler, which float32 has rounded, is within bounds."""
    return low - _SLACK <= t <= high + _SLACK


def euler_step(z_t: Tensor, velocity: Tensor, t: float, t_next: float) -> Tensor:
    """z at t_next: z_t + (t_next − t) v, in the operations and precisions of diffusers' scheduler, so with the same bits.

    The sum is made in float32; the product, and the result, have the velocity's precision.
    """
    dt = torch.tensor(np.float32(t_next) - np.float32(t), device=velocity.device)
    return (z_t.float() + dt * velocity).to(velocity.dtype)
