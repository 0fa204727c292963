"""Weights beside those that are trained: their exponential moving average, and the best so far."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """A module's parameters and buffers by name: all that training changes."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of tensors as they are now."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


@torch.no_grad()
def assign(tensors: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Set tensors to the values of the same names, in place."""
    for name, value in values.items():
        tensors[name].copy_(value)


class Average:
    """Exponential moving average of weights; after n updates the decay is min(`decay`, (1 + n) / (10 + n)).

    `first` is the n of the first update: an average that starts at 0 forgets the first weights faster.
    """

    def __init__(self, weights: Mapping[str, Tensor], decay: float, first: int = 1) -> None:
        self.values = copied(weights)
        self._decay, self._first = decay, first

    @torch.no_grad()
    def update(self, weights: Mapping[str, Tensor], step: int) -> None:
        """Move towards the weights after `step` steps, 1 or more."""
        n = step - 1 + self._first
        share = 1 - min(self._decay, (1 + n) / (10 + n))
        torch._foreach_lerp_(list(self.values.values()), [weights[name].detach() for name in self.values], share)


class Best:
    """Tensors as they were at their highest score, and when that was; scores compare as tuples."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors, self._values = tensors, dict[str, Tensor]()
        self.score, self.at = (-1.0, float("-inf")), 0

    def offer(self, score: tuple[float, float], at: int) -> bool:
        """Keep the tensors as they are now if `score` is above all before; whether it is."""
        if not score > self.score:
            return False
        self.score, self.at = score, at
        self._values = copied(self.tensors)
        return True

    def restore(self) -> None:
        """Set the tensors to what was kept."""
        assign(self.tensors, self._values)
