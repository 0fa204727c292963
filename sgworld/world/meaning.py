"""What a noise means: the scene of a caption that the generator is to draw from it.

With independent noise the first of four Euler steps can only aim at the mean of all scenes of a caption. Here the uniforms u of a
scene are read off the noise itself: means of its channels, and how much higher a channel is on one side than on the other. They are
independent and normal whatever else the noise is, so that Gaussian noise means every scene as often as `compose` draws it. Both
marginals of the flow stay as they were; noises are coupled to scenes (Tong et al. 2024, §3) in a way that a generator can learn to
read: of two related objects the one said first stands where a channel is high, which an attention of names to noise finds.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr
from torch import Tensor

from sgworld.world.specification import (
    ACROSS,
    ANCHOR_X,
    ANCHOR_Y,
    BACKGROUND,
    CLASS,
    DISTANCE,
    DOWN,
    JOIN,
    PLACE_X,
    PLACE_Y,
    SLOTS,
    SUBJECT,
)  # fmt: skip

SIDE: Final = 8
"""Tokens along a side."""
RELATIONS: Final = range(4)
BY_MEAN: Final = {
    BACKGROUND: 0, ANCHOR_X: 1, ANCHOR_Y: 2, JOIN: 14, JOIN + 1: 15,
    **dict(zip((CLASS + number for number in RELATIONS), (4, 5, 12, 3), strict=True)),
    **dict(zip((DISTANCE + number for number in RELATIONS), (10, 11, 6, 7), strict=True)),
}  # fmt: skip
"""Slots that the mean of a channel over all tokens decides, with the channel."""
BY_SIDE: Final = {
    **{ACROSS + number: number for number in RELATIONS},
    **{SUBJECT + number: 4 + number for number in RELATIONS},
    **{PLACE_X + number: 8 + number for number in range(3)},
}  # fmt: skip
"""Slots that the right half's mean less the left half's decides: the first said object stands where the channel is high."""
BY_HEIGHT: Final = {**{DOWN + number: number for number in RELATIONS}, **{PLACE_Y + number: 8 + number for number in range(3)}}
"""Slots that the lower half's mean less the upper half's decides, likewise."""
CHOICES: Final = {
    **dict.fromkeys((*BY_MEAN, *BY_SIDE, *BY_HEIGHT), 2), BACKGROUND: 4, **{CLASS + number: 4 for number in RELATIONS},
}  # fmt: skip
"""How many values of each slot are used, the middles of equal shares: fewer scenes, each of which is learned sooner.

So a neutral caption has four of the classes that are plausible for a pair, and no object that nothing relates.
"""


def uniforms(noise: Tensor) -> NDArray[np.float64]:
    """u `[B, 31]` of noises `[B, 64, 16]`; for standard normal noise its entries are independent, and uniform over their values."""
    grid = noise.double().unflatten(1, (SIDE, SIDE))
    upper, lower = grid.sum(2).chunk(2, dim=1)
    left, right = grid.sum(1).chunk(2, dim=1)
    values = np.empty((len(noise), SLOTS))
    for slots, sums in (
        (BY_MEAN, grid.sum((1, 2))), (BY_SIDE, right.sum(1) - left.sum(1)), (BY_HEIGHT, lower.sum(1) - upper.sum(1)),
    ):  # fmt: skip
        values[:, list(slots)] = (sums / SIDE)[:, list(slots.values())].numpy()
    counts = np.array([CHOICES[slot] for slot in range(SLOTS)])
    return (np.minimum(np.floor(ndtr(values) * counts), counts - 1) + 0.5) / counts
