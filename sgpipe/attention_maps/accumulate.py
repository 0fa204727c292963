"""Running sums of scores per layer group: all that is kept of a forward."""

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor


class GroupMaps(NamedTuple):
    """Maps of one layer group, float32 `[B, K, H, W]` on the model's device: means over its blocks and the counted forwards."""

    saliency: Tensor
    cross: Tensor


class GroupSums:
    """Sums of saliency and cross-attention scores `[B, K, N]` for each group of blocks."""

    def __init__(self, groups: Mapping[str, tuple[int, ...]]) -> None:
        self.groups = groups
        self.forwards = 0
        self._sums: dict[str, tuple[Tensor, Tensor]] = {}

    def _add(self, name: str, saliency: Tensor, cross: Tensor) -> None:
        if name in self._sums:
            before = self._sums[name]
            if before[0].shape != saliency.shape:
                raise ValueError(
                    f"scores of this forward are {list(saliency.shape)} [B, K, N], those before {list(before[0].shape)}; "
                    "open one stream per batch"
                )
            saliency, cross = before[0] + saliency, before[1] + cross
        self._sums[name] = saliency, cross

    def add_block(self, index: int, saliency: Tensor, cross: Tensor) -> None:
        """Add one block's scores to every group that has the block."""
        for name, blocks in self.groups.items():
            if index in blocks:
                self._add(name, saliency, cross)

    def add_forward(self, other: "GroupSums") -> None:
        """Add the sums of one whole forward."""
        for name, scores in other._sums.items():
            self._add(name, *scores)
        self.forwards += 1

    def means(self, grid: tuple[int, int]) -> dict[str, GroupMaps]:
        """Maps per group on a grid of H × W = N patches."""
        return {
            name: GroupMaps(
                *(total.unflatten(2, grid) / (len(self.groups[name]) * self.forwards) for total in totals)
            )
            for name, totals in self._sums.items()
        }
