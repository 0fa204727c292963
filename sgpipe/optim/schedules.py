"""Learning-rate schedules: the factor on the peak learning rate at a step, 0 … steps − 1; pure functions."""

import math
from typing import Literal

Shape = Literal["constant", "linear", "cosine"]


def warmup_then(shape: Shape, step: int, steps: int, warmup: int) -> float:
    """Linear warm-up over `warmup` steps, then constant, or down to 0 after the last step (linear, or half a cosine)."""
    if step < warmup:
        return (step + 1) / warmup
    if shape == "constant":
        return 1.0
    done = (step - warmup) / max(1, steps - warmup)
    return 1 - done if shape == "linear" else 0.5 * (1 + math.cos(math.pi * done))


def one_cycle(step: int, steps: int) -> float:
    """Up a line over the first fifth, then down half a cosine (Smith & Topin 2019).

    π is multiplied before the division, which rounds otherwise than `warmup_then` does.
    """
    rising = max(1, steps // 5)
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def trapezoid(step: int, warmup: int, left: float) -> float:
    """Linear warm-up over `warmup` steps, constant, linear decay to 0 (warmup–stable–decay, Hu et al. 2024, section 4).

    `left`: steps left, this one among them, in units of the decay's length; above 1 before the decay.
    """
    return min(1.0, (step + 1) / max(1, warmup), left)
