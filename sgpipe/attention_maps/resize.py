"""Maps at another side."""

import torch
from torch import Tensor
from torch.nn.functional import interpolate


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
