"""What is random in training, as functions of (seed, step): order, prompts, times and noise. A resumed run draws the same."""

from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sgpipe.backbones.rectified_flow import generator, is_within, logit_normal_times, uniform_times
from sgpipe.errors import ParamsError
from sgpipe.training.config import Conditions, Times


def rows_of(start: int, count: int, size: int, seed: int) -> list[int]:
    """Rows `start … start + count − 1` of an endless sequence of shuffled passes over `size` rows."""
    rows: list[int] = []
    while len(rows) < count:
        epoch, place = divmod(start + len(rows), size)
        order = torch.randperm(size, generator=generator(seed, "order", epoch))
        rows += order[place : place + count - len(rows)].tolist()
    return rows


def conditions_of(count: int, conditions: Conditions, random: torch.Generator) -> list[str]:
    """A condition for each of `count` samples, with the probabilities of `conditions`."""
    shares = conditions.shares()
    names = list(shares)
    weights = torch.tensor(list(shares.values()))
    return [names[index] for index in torch.multinomial(weights, count, True, generator=random).tolist()]


def sampler_times(times: Times, sigmas: NDArray[np.float32]) -> Tensor:
    """Of a sampler's `sigmas` `[steps + 1]` (`Family.sigmas`), those within the bounds at which it evaluates the velocity.

    Ascending, float32. Raises `ParamsError` if none is within the bounds.
    """
    sigmas = sigmas[:-1]
    found = [float(t) for t in sigmas[::-1] if is_within(t, times.low, times.high)]
    if not found:
        raise ParamsError(
            f"train.times.steps: got {times.steps}, whose sigmas with this model's scheduler are "
            f"{', '.join(f'{t:.3g}' for t in sigmas)}; none lies within {times.low:g} to {times.high:g}: widen train.times.low and "
            "train.times.high"
        )
    return torch.tensor(found)


def times_of(count: int, times: Times, random: torch.Generator, sigmas: Tensor | None = None) -> Tensor:
    """Times `[count]` of the density asked for; `sigmas` are those of `sampler_times`, for density `sampler`."""
    if sigmas is not None:
        return sigmas[torch.randint(len(sigmas), (count,), generator=random)]
    if times.density == "uniform":
        return uniform_times(count, times.low, times.high, random)
    inner = logit_normal_times(count, times.mean, times.deviation, random)
    return times.low + (times.high - times.low) * inner


def even_times(count: int, times: Times, sigmas: Tensor | None = None) -> Tensor:
    """Times `[count]` that divide the range evenly, or `sigmas` in turn; their order has nothing to do with the samples'."""
    order = torch.randperm(count, generator=generator("validation times", count))
    if sigmas is not None:
        return sigmas[order % len(sigmas)]
    return times.low + (times.high - times.low) * (order + 0.5) / max(1, count)


def bin_of(t: Tensor, times: Times, bins: int) -> Tensor:
    """The bin `[B]`, 0 … bins − 1, of each time within the range."""
    share = (t - times.low) / (times.high - times.low)
    return (share * bins).long().clamp(0, bins - 1)


def bin_names(times: Times, bins: int) -> list[str]:
    """`t_<low>_<high>` of each bin."""
    edges = torch.linspace(times.low, times.high, bins + 1).tolist()
    return [f"t_{low:.2f}_{high:.2f}" for low, high in pairwise(edges)]
