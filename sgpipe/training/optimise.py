"""AdamW with a schedule, gradients over processes, and averaged weights."""

import math
from collections.abc import Mapping

import torch
from accelerate.utils import reduce
from torch import Tensor, nn

from sgpipe.training.config import Optimiser


def schedule(step: int, steps: int, optimiser: Optimiser) -> float:
    """Factor on the rate at a step: linear warm-up, then constant, or down to 0 at the last step (linear, or half a cosine)."""
    if step < optimiser.warmup:
        return (step + 1) / optimiser.warmup
    if optimiser.schedule == "constant":
        return 1.0
    done = (step - optimiser.warmup) / max(1, steps - optimiser.warmup)
    return 1 - done if optimiser.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))


def adamw(weights: Mapping[str, nn.Parameter], optimiser: Optimiser) -> torch.optim.AdamW:
    """AdamW over weights by `<group>.<name>`, each group with its learning rate as `peak`: that of `tokens` has a multiplier."""
    groups: dict[str, list[nn.Parameter]] = {}
    for name, weight in weights.items():
        groups.setdefault(name.partition(".")[0], []).append(weight)
    multiplier = {"tokens": optimiser.token_lr_multiplier}
    own = [
        {"params": group, "peak": optimiser.learning_rate * multiplier.get(name, 1.0)}
        for name, group in groups.items()
    ]
    return torch.optim.AdamW(
        own, lr=optimiser.learning_rate, betas=(0.9, 0.999), weight_decay=optimiser.weight_decay, foreach=True
    )


def set_rates(optimiser: torch.optim.Optimizer, factor: float) -> None:
    """Each group's rate: its peak times the schedule's factor."""
    for group in optimiser.param_groups:
        group["lr"] = group["peak"] * factor


def average_gradients(weights: Mapping[str, nn.Parameter], processes: int) -> None:
    """The mean of every gradient over the processes, in place, in one exchange.

    A weight that the loss of some processes reached counts as zero in the others; one that none reached keeps no gradient, so that
    the optimiser leaves it alone as it does with one process.
    """
    if processes == 1:
        return
    sizes = [weight.numel() for weight in weights.values()]
    own = [
        weight.grad if weight.grad is not None else torch.zeros_like(weight) for weight in weights.values()
    ]
    reached = own[0].new_tensor([float(weight.grad is not None) for weight in weights.values()])
    mean = reduce(torch.cat([*(gradient.flatten() for gradient in own), reached]), reduction="mean")
    parts, shares = mean[: sum(sizes)].split(sizes), mean[sum(sizes) :].tolist()
    for weight, part, share in zip(weights.values(), parts, shares, strict=True):
        weight.grad = part.view_as(weight) if share else None


class Average:
    """Exponential moving average of weights; the window grows with the steps taken, up to `decay`."""

    def __init__(self, weights: Mapping[str, nn.Parameter], decay: float) -> None:
        self.values: dict[str, Tensor] = {name: weight.detach().clone() for name, weight in weights.items()}
        self._decay = decay

    @torch.no_grad()
    def update(self, weights: Mapping[str, nn.Parameter], step: int) -> None:
        """Move towards the weights after `step` steps."""
        share = 1 - min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(
            list(self.values.values()), [weights[name].detach() for name in self.values], share
        )
