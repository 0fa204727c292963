"""SGDiff's noise schedule and its DDIM sampler (Song et al. 2021, arXiv 2010.02502, equation 12), with the official rounding.

ᾱ is rounded to float32 once, as every published checkpoint holds it; the tables of DDIM are made of these values. The alpha before
the last step is ᾱ₀, not 1, and with η = 1 the last step adds noise, too.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from sgpipe.errors import ParamsError
from sgpipe.runs.progress import tick
from sgpipe.sgdiff.steps import STEPS, TIMESTEPS

BETA_FIRST, BETA_LAST = 0.0015, 0.0195


def betas() -> Tensor:
    """β `[1000]`, float64: a straight line in √β, squared (`scaled_linear` in diffusers)."""
    return torch.linspace(BETA_FIRST**0.5, BETA_LAST**0.5, TIMESTEPS, dtype=torch.float64) ** 2


def alphas_cumprod() -> Tensor:
    """ᾱ_t = Π (1 − β) `[1000]`, float64, not rounded."""
    return torch.cumprod(1 - betas(), 0)


@cache
def registered_buffers() -> dict[str, Tensor]:
    """The twelve float32 tables `[1000]` that a checkpoint holds beside its weights, by their official names."""
    beta, alpha_bar = betas(), alphas_cumprod()
    before = torch.cat([alpha_bar.new_ones(1), alpha_bar[:-1]])
    variance = beta * (1 - before) / (1 - alpha_bar)
    tables = {
        "betas": beta,
        "alphas_cumprod": alpha_bar,
        "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": alpha_bar.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - alpha_bar).sqrt(),
        "log_one_minus_alphas_cumprod": (1 - alpha_bar).log(),
        "sqrt_recip_alphas_cumprod": (1 / alpha_bar).sqrt(),
        "sqrt_recipm1_alphas_cumprod": (1 / alpha_bar - 1).sqrt(),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": variance.clamp(min=1e-20).log(),
        "posterior_mean_coef1": beta * before.sqrt() / (1 - alpha_bar),
        "posterior_mean_coef2": (1 - before) * (1 - beta).sqrt() / (1 - alpha_bar),
    }
    return {name: table.float() for name, table in tables.items()}


def diffused(latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """x_t = √ᾱ_t x₀ + √(1 − ᾱ_t) ε (Ho et al. 2020, equation 4) of latents `[B, C, h, w]` at timesteps `[B]`.

    The coefficients are the float32 tables of a checkpoint.
    """
    tables = registered_buffers()
    signal, level = (
        tables[name].to(latents.device)[timesteps].to(latents.dtype)[:, None, None, None]
        for name in ("sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod")
    )
    return signal * latents + level * noise


@dataclass(frozen=True)
class DdimTables:
    """`timesteps` `[S]` ascending, and for each ᾱ, the ᾱ that its step ends at, and σ, float64 with the official rounding."""

    timesteps: Tensor
    alphas: Tensor
    alphas_previous: Tensor
    sigmas: Tensor

    @classmethod
    def of(cls, steps: int, eta: float, dtype: torch.dtype = torch.float32) -> "DdimTables":
        """Tables of S = `steps` steps: t = 1, 1 + c, 1 + 2c, … with c = 1000 / S.

        For float32 σ is made as the official code does, with 1/(1 − ᾱ) in float32 and the rest in float64; for float64 all is in
        float64, from ᾱ rounded to float32. Raises `ParamsError` for a number of steps that does not divide 1000.
        """
        if steps not in STEPS:
            raise ParamsError(f"steps: got {steps}; DDIM takes a divisor of {TIMESTEPS}: {', '.join(map(str, STEPS))}")
        timesteps = torch.arange(0, TIMESTEPS, TIMESTEPS // steps) + 1
        rounded = registered_buffers()["alphas_cumprod"]
        alphas, previous = rounded[timesteps], torch.cat([rounded[:1], rounded[timesteps[:-1]]]).double()
        over = (1 - alphas.to(dtype)).reciprocal().double()
        sigmas = eta * ((1 - previous) * over * (1 - alphas.double() / previous)).sqrt()
        return cls(timesteps, alphas.double(), previous, sigmas)


def ddim(
    predict: Callable[[Tensor, Tensor], Tensor], start: Tensor, tables: DdimTables, noise: Callable[[int], Tensor]
) -> Iterator[Tensor]:
    """x after each DDIM step from `start` = x_T `[B, C, h, w]`; `predict(x, t [B])` is ε, `noise(i)` that of the i-th step taken.

    x₀ = (x − √(1 − ᾱ) ε) / √ᾱ, neither clipped nor quantised; x ← √ᾱ' x₀ + √(1 − ᾱ' − σ²) ε + σ z.
    """
    x, dtype = start, start.dtype
    one_minus = (1 - tables.alphas.to(dtype)).sqrt()
    for taken, index in enumerate(reversed(range(len(tables.timesteps)))):
        alpha, previous, sigma, level = (
            table[index].to(x.device, dtype) for table in (tables.alphas, tables.alphas_previous, tables.sigmas, one_minus)
        )
        epsilon = predict(x, tables.timesteps[index].to(x.device).expand(len(x)))
        clean = (x - level * epsilon) / alpha.sqrt()
        x = previous.sqrt() * clean + (1 - previous - sigma**2).sqrt() * epsilon
        if tables.sigmas[index] > 0:
            x = x + sigma * noise(taken)
        tick(len(x))
        yield x
