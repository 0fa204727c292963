"""Which part of an image the masked loss hides: pixels and patches under the boxes of drawn objects.

SGDiff's own mask subtracts every box from 1, so that where boxes overlap it goes negative, and it hides the whole image
whenever the `__image__` node, whose box is the full image, is drawn. Here a pixel is hidden or not, and `boxes` are those of
real objects alone.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def hidden_pixels(
    boxes: Tensor, box_image: Tensor, drawn: Tensor, count: int, size: tuple[int, int]
) -> Tensor:
    """True `[count, H, W]` where the centre of a pixel lies in the box of a drawn object.

    `boxes` `[O, 4]` are x0, y0, x1, y1 in 0–1 of the image that the tower sees, `box_image` `[O]` the image of each, `drawn` `[O]`
    whether it is to be hidden.
    """
    height, width = size
    y, x = ((torch.arange(n, dtype=boxes.dtype, device=boxes.device) + 0.5) / n for n in (height, width))
    x0, y0, x1, y1 = boxes[:, :, None].unbind(1)
    inside = ((y >= y0) & (y < y1))[:, :, None] & ((x >= x0) & (x < x1))[:, None, :]
    inside = inside & drawn[:, None, None]
    sums = torch.zeros(count, height, width, device=boxes.device).index_add(0, box_image, inside.float())
    return sums > 0


def hidden_patches(pixels: Tensor, patch: int) -> Tensor:
    """True `[N, P]` for the patches of a tower, in row order, of which any pixel is hidden."""
    return F.max_pool2d(pixels.float()[:, None], patch).flatten(1) > 0
