"""What a noise means: the scene of a caption that the generator is to draw from it.

With independent noise the first of four Euler steps can only aim at the mean of all scenes of a caption. Here the uniforms u of a
scene are read off the noise itself: the means of its channels, which are independent and normal whatever else the noise is, so that
Gaussian noise means every scene as often as `compose` draws it from these values. Both marginals of the flow stay as they were;
noises are coupled to scenes (Tong et al. 2024, §3) in a way that a generator can learn to read.
"""

from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr
from torch import Tensor

from sgworld.world.compose import arrangements, neutral_links, scene_of
from sgworld.world.groups import classes_of
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
    Caption,
    Scene,
)  # fmt: skip
from sgworld.world.wishes import Sparse, Stand

CHANNELS: Final = 16
CHANNEL: Final = {
    BACKGROUND: 0, ANCHOR_X: 1, ANCHOR_Y: 2,
    **dict(zip((ACROSS + number for number in range(4)), (3, 4, 5, 13), strict=True)),
    **dict(zip((DOWN + number for number in range(4)), (6, 7, 8, 14), strict=True)),
    **dict(zip((SUBJECT + number for number in range(4)), (6, 7, 8, 14), strict=True)),
    **dict(zip((CLASS + number for number in range(4)), (9, 10, 11, 15), strict=True)),
    **dict.fromkeys((DISTANCE + number for number in range(4)), 12),
    JOIN: 13, JOIN + 1: 14, PLACE_X: 9, PLACE_Y: 10, PLACE_X + 1: 11, PLACE_Y + 1: 15, PLACE_X + 2: 13, PLACE_Y + 2: 14,
}  # fmt: skip
"""The channel whose mean over all tokens decides a slot.

Slots share one where seldom both matter: who is above and who of two beside one another is the subject; classes and joins, which
neutral captions leave open, and places of further groups, which those have not; all distances.
"""
LEVELS: Final = (4, *(2 for _ in range(8)), 4, 4, 4, 2, 2, 2, 4)
"""How many values the mean of a channel has, the middles of equal shares: fewer scenes, each of which is learned sooner.

So a neutral caption has four classes for a pair, and no object that nothing relates.
"""


def cut(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """The value that each of `[B, 16]` numbers in 0…1 falls to: the middle of one of the channel's equal parts."""
    counts = np.array(LEVELS)
    return (np.minimum(np.floor(shares * counts), counts - 1) + 0.5) / counts


def levels(noise: Tensor) -> NDArray[np.float64]:
    """A value `[B, 16]` per channel of noises `[B, 64, 16]`; for standard normal noise independent, uniform over its values."""
    return cut(ndtr(noise.double().sum(1).numpy() / noise.shape[1] ** 0.5))


PREFERRED: Final = (
    ("left of",),
    ("above",),
    ("riding", "eating", "drinking", "wearing", "pulling", "using", "hanging from", "carrying", "around/near"),
    ("holding", "sitting on", "standing on", "playing with", "pushing", "looking at", "in", "on", "in front of"),
)
"""The class of a relation that a caption leaves open, by its channel's value: the first of these that the names can stand in."""
FURTHER: Final = 2
"""How many of these a relation may become that joins a third or a fourth object."""


def uniforms(said: NDArray[np.float64]) -> NDArray[np.float64]:
    """u `[B, 31]` of the values `[B, 16]` of channels: of each slot that of its channel."""
    return said[:, [CHANNEL[slot] for slot in range(SLOTS)]]


def _chosen(caption: Caption, u: NDArray[np.float64]) -> list[float]:
    """u, with the class that `PREFERRED` has for each relation of a neutral caption."""
    values: list[float] = u.tolist()
    if caption.relations:
        return values
    for link in neutral_links(caption.names, tuple(values)):
        classes = classes_of(link.first, link.second)
        wanted = PREFERRED[int(values[CLASS + link.slot] * (FURTHER if link.slot else len(PREFERRED)))]
        values[CLASS + link.slot] = (next(classes.index(each) for each in wanted if each in classes) + 0.5) / len(classes)
    return values


def meant(caption: Caption, u: NDArray[np.float64]) -> Scene:
    """The scene that a caption means with `uniforms` `[31]`.

    Easier to read than what `compose` makes of them by itself: classes that are left open are few and the same for most names, and
    so are distances and places. Held-out triples are drawn where names alone are said.
    """
    values = _chosen(caption, u)
    return scene_of(caption.names, next(arrangements(caption, values, Sparse(values, withheld=False))), values)


def nearest(caption: Caption, u: NDArray[np.float64], stands: Mapping[str, Stand]) -> Scene:
    """The first scene of a caption that fits, in the order of `wishes.Sparse`: near to how its objects are told to stand, and about
    where `uniforms` say.
    """
    values = _chosen(caption, u)
    found = next(arrangements(caption, values, Sparse(values, withheld=False, stands=stands)))
    return scene_of(caption.names, found, values)
