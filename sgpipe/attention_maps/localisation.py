"""Whether the map of a concept falls on its object: maps of real images against the boxes that were annotated."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def coverage(boxes: Floats, side: tuple[int, int]) -> Floats:
    """Share of each patch that lies in a box: `[N, H, W]`, 0–1, for boxes `[N, 4]` of (x, y, w, h) in parts of the image."""
    height, width = side
    x, y, w, h = (boxes[:, i, None] for i in range(4))

    def along(low: Floats, size: Floats, cells: int) -> Floats:
        edges = np.arange(cells + 1) / cells
        shared = np.minimum(edges[1:], low + size) - np.maximum(edges[:-1], low)
        return np.clip(shared, 0.0, None) * cells

    return along(y, h, height)[:, :, None] * along(x, w, width)[:, None, :]


def boxes_in_crop(boxes: Floats, crops: Floats) -> Floats:
    """Boxes `[N, 4]` in pixels of the image as parts of crops `[N, 4]` of it."""
    origin, size = crops[:, :2], crops[:, 2:]
    return np.concatenate([(boxes[:, :2] - origin) / size, boxes[:, 2:] / size], axis=1)


def mass_in_box(maps: Floats, inside: Floats) -> Floats:
    """Share `[N]` of each map's mass, above its own minimum, that lies where `inside` `[N, H, W]` says.

    A flat map has the share of a uniform one. For maps `[N, H, W]`.
    """
    above = maps - maps.min(axis=(1, 2), keepdims=True)
    above = np.where(above.sum(axis=(1, 2), keepdims=True) > 0, above, 1.0)
    return (above * inside).sum(axis=(1, 2)) / above.sum(axis=(1, 2))


def uniform_mass(inside: Floats) -> Floats:
    """The share `[N]` that a uniform map has in the box: the box's part of the image."""
    return inside.mean(axis=(1, 2))


def peak_in_box(maps: Floats, inside: Floats) -> NDArray[np.bool_]:
    """Whether the patch of greatest value lies at least half in the box (the pointing game of Zhang et al. 2018), `[N]`."""
    flat, covered = (each.reshape(len(maps), maps.shape[1] * maps.shape[2]) for each in (maps, inside))
    at = covered[np.arange(len(maps)), flat.argmax(axis=1)]
    return at >= 0.5
