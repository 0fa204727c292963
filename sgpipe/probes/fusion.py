"""What a probe sees of the two kinds of map (seed document, "Fusion between saliency maps and cross-attention maps")."""

from typing import Final

import torch
from torch import Tensor

from sgpipe.params.probes import Feature

KINDS_OF: Final[dict[Feature, tuple[str, ...]]] = {
    "saliency": ("saliency",),
    "cross": ("cross",),
    "concat": ("saliency", "cross"),
    "triple": ("saliency", "cross"),
    "diff": ("saliency", "cross"),
}
"""Kinds of map that a feature is made of, in the order in which their channels stand."""

PARTS: Final[dict[Feature, int]] = {"saliency": 1, "cross": 1, "concat": 2, "triple": 3, "diff": 2}
"""Channels of a feature per concept."""


def fuse(maps: Tensor, feature: Feature) -> Tensor:
    """Channels `[B, PARTS · K, H, W]` of a feature from its kinds' maps `[B, kinds · K, H, W]`.

    concat = [saliency, cross]; triple = [saliency, cross, saliency · cross]; diff = [saliency, cross − saliency].
    """
    if feature in ("saliency", "cross", "concat"):
        return maps
    saliency, cross = maps.chunk(2, dim=1)
    if feature == "triple":
        return torch.cat([saliency, cross, saliency * cross], dim=1)
    if feature == "diff":
        return torch.cat([saliency, cross - saliency], dim=1)
    raise ValueError(f"feature: got {feature!r}; valid: {', '.join(KINDS_OF)}")
