"""Scores of concepts on image patches, always in float32.

Running sums of scores per layer group: all that is kept of a forward.

Maps at another side.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from sgpipe.attention_maps.config import Normalisation


class GroupMaps(NamedTuple):
    """Maps of one layer group, float32 `[B, K, H, W]` on the model's device: means over its blocks and the counted forwards.

    Or the scores `[B, K, N]` that they are made of.
    """

    saliency: Tensor
    cross: Tensor


class GroupSums:
    """Sums of saliency and cross-attention scores `[B, K, N]` for each group of blocks."""

    def __init__(self, groups: Mapping[str, tuple[int, ...]]) -> None:
        self.groups = groups
        self.forwards = 0
        self._sums: dict[str, GroupMaps] = {}

    def _add(self, name: str, scores: GroupMaps) -> None:
        before = self._sums.get(name)
        if before is not None:
            if before.saliency.shape != scores.saliency.shape:
                raise ValueError(
                    f"scores of this forward are {list(scores.saliency.shape)} [B, K, N], those before "
                    f"{list(before.saliency.shape)}; open one stream per batch"
                )
            scores = GroupMaps(before.saliency + scores.saliency, before.cross + scores.cross)
        self._sums[name] = scores

    def add_block(self, index: int, scores: GroupMaps) -> None:
        """Add one block's scores to every group that has the block."""
        for name, blocks in self.groups.items():
            if index in blocks:
                self._add(name, scores)

    def add_forward(self, other: "GroupSums") -> None:
        """Add the sums of one whole forward."""
        for name, scores in other._sums.items():
            self._add(name, scores)
        self.forwards += 1

    def means(self, grid: tuple[int, int]) -> dict[str, GroupMaps]:
        """Maps per group on a grid of H × W = N patches."""
        return {
            name: GroupMaps(*(total.unflatten(2, grid) / (len(self.groups[name]) * self.forwards) for total in totals))
            for name, totals in self._sums.items()
        }


def _area_weights(size: int, side: int) -> Tensor:
    """`[side, size]`: the share that each input cell has in each output cell; rows sum to 1."""
    edges = torch.arange(side + 1, dtype=torch.float64) * size / side
    cells = torch.arange(size, dtype=torch.float64)
    overlap = torch.minimum(edges[1:, None], cells + 1) - torch.maximum(edges[:-1, None], cells)
    return (overlap.clamp(min=0) * side / size).float()


def resize_maps(maps: Tensor, side: int) -> Tensor:
    """Maps `[..., H, W]` at `[..., side, side]`, in float32, differentiable.

    An axis that shrinks is averaged over the exact area of each new cell (the mean of the map stays); one that grows is bilinear
    between cell centres. Maps at that side already are returned as they are.
    """
    if side < 1:
        raise ValueError(f"side: got {side}; valid: at least 1")
    maps = maps.float()
    height, width = maps.shape[-2:]
    if height > side:
        maps = torch.einsum("sh,...hw->...sw", _area_weights(height, side).to(maps.device), maps)
    if width > side:
        maps = torch.einsum("sw,...hw->...hs", _area_weights(width, side).to(maps.device), maps)
    if maps.shape[-2:] != (side, side):
        flat = maps.reshape(1, -1, *maps.shape[-2:])
        maps = interpolate(flat, (side, side), mode="bilinear").reshape(*maps.shape[:-2], side, side)
    return maps


def _dot_products(rows: Tensor, columns: Tensor) -> Tensor:
    """⟨rows[k], columns[i]⟩ as float32 `[B, K, N]`, under autocast too."""
    device = rows.device.type
    available = torch.amp.is_autocast_available(device)
    with torch.autocast(device, enabled=False) if available else nullcontext():
        return rows.float() @ columns.float().mT


def saliency_scores(concept_output: Tensor, image_output: Tensor) -> Tensor:
    """S[k, i] = ⟨O_C[k], O_X[i]⟩ `[B, K, N]`, over all heads and dimensions, without a scale.

    O_C `[B, K, D]` and O_X `[B, N, D]` are attention outputs with heads concatenated, before the output projections.
    """
    return _dot_products(concept_output, image_output)


def cross_scores(image_query: Tensor, concept_key: Tensor) -> Tensor:
    """Mean over heads of ⟨image_q[i], concept_k[k]⟩ `[B, K, N]`, without 1/√d_h.

    `[B, N, H, d]` and `[B, K, H, d]`, after the q/k norms and before RoPE.
    """
    heads = concept_key.shape[2]
    return _dot_products(concept_key.flatten(2), image_query.flatten(2)) / heads


def normalise(scores: Tensor, kind: Normalisation) -> Tensor:
    """Scores `[B, K, N]` as they are, or their softmax over concepts (K) or patches (N)."""
    if kind == "none":
        return scores
    return scores.softmax(dim=1 if kind == "concepts" else 2)
