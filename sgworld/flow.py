"""What the embedded generator learns at one step: a rectified flow that also learns from where its own steps lead.

A sampler of few steps asks for velocities where it has led itself, not on the straight lines between noise and pictures. After a
first step that has not quite decided who stands where, a model that knows only such lines goes on painting both. So part of every
batch is rolled out by the model's own Euler steps, and learns from where it stands to reach one picture: of those that the caption
describes, the one nearest to what the step before predicted.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sgworld.coupling import Coupling

STEPS = 4
ROLLED = (2 / 3, 1 / 3, 1 / 6)
"""Share of a batch that is led by at least one, two and three Euler steps of the model itself."""
INDEPENDENT = 0.375
"""Of the states that are not rolled out, the share whose noise does not know its picture, as for a real picture that is noised."""
AT_START = 0.8
"""Of the others, the share at t = 1, where sampling starts."""
Velocity = Callable[[Tensor, Tensor, int], Tensor]
"""From states `[B, 64, C]`, times `[B]` and the row at which these begin in the batch to velocities `[B, 64, C]`."""


def time_weights(times: Tensor, rolled: Tensor) -> Tensor:
    """Weights of the loss `[B]` at `times` in (0, 1]: t², which is the error of the picture, where a state is `rolled` out.

    Elsewhere that of the velocity, but below the last time of a 4-step sampler as t² too: near t = 0 the velocity asks for the
    noise in a nearly clean latent, which cannot be told from what the VAE left there.
    """
    return torch.where(rolled, times, (times * STEPS).clamp(max=1.0)).square()


def rolled_counts(batch: int) -> tuple[int, ...]:
    """How many of a batch are led by at least one, two and three steps: the last rows of it, the same at every step."""
    return tuple(round(batch * share) for share in ROLLED)


@torch.no_grad()
def roll(
    velocity: Velocity, coupling: Coupling, captions: NDArray[np.int64], states: Tensor, targets: Tensor, times: Tensor
) -> None:  # fmt: skip
    """Lead the last rows of `states` (noise) by Euler steps in place; their `targets` and `times` follow."""
    batch = len(captions)
    for step, count in enumerate(rolled_counts(batch)):
        first, at = batch - count, 1 - step / STEPS
        if not count:
            return
        led = states[first:]
        velocities = velocity(led, torch.full((count,), at), first)
        targets[first:] = coupling.nearest(captions[first:], led - at * velocities)
        states[first:] = led - velocities / STEPS
        times[first:] = at - 1 / STEPS


def draw_states(
    generator: torch.Generator, velocity: Velocity, coupling: Coupling, captions: NDArray[np.int64]
) -> tuple[Tensor, Tensor, Tensor]:
    """States `[B, 64, C]`, the pictures `[B, 64, C]` to be reached from there, and times `[B]` in (0, 1]."""
    targets, noise = coupling.draw(generator, captions)
    batch = len(captions)
    plain = batch - rolled_counts(batch)[0]
    independent = round(plain * INDEPENDENT)
    times = 1.0 - torch.rand(batch, generator=generator)
    starts = torch.rand(batch, generator=generator) < AT_START
    starts[:independent] = False
    times[starts] = 1.0
    noise[:independent] = torch.randn(noise[:independent].shape, generator=generator)
    at = times[:, None, None]
    states = (1 - at) * targets + at * noise
    states[plain:] = noise[plain:]
    roll(velocity, coupling, captions, states, targets, times)
    return states, targets, times


def flow_loss(generator: torch.Generator, velocity: Velocity, coupling: Coupling, captions: NDArray[np.int64]) -> Tensor:
    """Mean weighted squared error of the velocities against (state − picture) / t.

    For a state that is not rolled out that is ε − x (Liu et al. 2023, eq. 1); for one that is, the velocity that would end in the
    picture.
    """
    states, targets, times = draw_states(generator, velocity, coupling, captions)
    errors = velocity(states, times, 0) - (states - targets) / times[:, None, None]
    rolled = torch.arange(len(captions)) >= len(captions) - rolled_counts(len(captions))[0]
    return (time_weights(times, rolled) * errors.square().mean((1, 2))).mean()
