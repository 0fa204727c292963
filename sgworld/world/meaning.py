"""What a noise means: the scene of a caption that the generator is to draw from it.

With independent noise the first of four Euler steps can only aim at the mean of all scenes of a caption. Here the uniforms u of a
scene are read off the noise itself: means of its channels, which are independent and normal whatever else the noise is, so that
Gaussian noise means every scene as often as `compose` draws it. Both marginals of the flow stay as they were; noises are coupled to
scenes (Tong et al. 2024, §3) in a way that a generator can learn to read.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr
from torch import Tensor

from sgworld.world.specification import (
    ANCHOR_X,
    ANCHOR_Y,
    BACKGROUND,
    CLASS,
    DISTANCE,
    JOIN,
    PAIR,
    PLACE_X,
    PLACE_Y,
    ROLE,
    SLOTS,
    WAY,
)  # fmt: skip

BY_MEAN: Final = (
    BACKGROUND, ANCHOR_X, ANCHOR_Y, PAIR, CLASS, CLASS + 1, ROLE, ROLE + 1, WAY, WAY + 1, DISTANCE, DISTANCE + 1, PLACE_X, PLACE_Y,
    JOIN, JOIN + 1,
)  # fmt: skip
"""Slots that the mean of a channel over all tokens decides, by channel."""
BY_HALVES: Final = (
    CLASS + 2, CLASS + 3, ROLE + 2, ROLE + 3, WAY + 2, WAY + 3, DISTANCE + 2, DISTANCE + 3, PLACE_X + 1, PLACE_X + 2, PLACE_Y + 1,
    PLACE_Y + 2,
)  # fmt: skip
"""Slots that the upper half's mean less the lower half's decides: those of scenes of many relations, which are rarer."""
CHOICES: Final = {
    BACKGROUND: 4, ANCHOR_X: 2, ANCHOR_Y: 2,
    **{first + number: 2 for first in (ROLE, WAY, DISTANCE) for number in range(4)},
    **{first + number: 2 for first in (PLACE_X, PLACE_Y) for number in range(3)},
}  # fmt: skip
"""Slots of which so many values are used, the middles of equal shares: fewer scenes, each of which is learned sooner.

The slots of class and of what relates to what keep all their values.
"""


def uniforms(noise: Tensor) -> NDArray[np.float64]:
    """u `[B, 28]` of noises `[B, 64, 16]`; for standard normal noise its entries are independent, and uniform over their values."""
    upper, lower = noise.double().chunk(2, dim=1)
    count = noise.shape[1]
    values = np.empty((len(noise), SLOTS))
    values[:, BY_MEAN] = ((upper.sum(1) + lower.sum(1)) / count**0.5)[:, : len(BY_MEAN)].numpy()
    values[:, BY_HALVES] = ((upper.sum(1) - lower.sum(1)) / count**0.5)[:, : len(BY_HALVES)].numpy()
    shares = ndtr(values)
    for slot, choices in CHOICES.items():
        shares[:, slot] = (np.minimum(np.floor(shares[:, slot] * choices), choices - 1) + 0.5) / choices
    return shares
