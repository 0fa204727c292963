"""Pictures and latents: crops to pixels, pixels to the VAE's posterior, latents to pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sgpipe.errors import DataError, ModelError

FILTER = "lanczos"
"""Lanczos-3 with support scaled by the reduction, so that shrinking does not alias; an unscaled crop on whole pixels is exact."""
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Scaling:
    """Between the VAE's latents z and those the transformer sees: (z − shift) · scale."""

    scale: float
    shift: float

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Self:
        """As the VAE's config.json states it."""
        return cls(config["scaling_factor"], config["shift_factor"] or 0.0)

    def __call__(self, latents: Tensor) -> Tensor:
        """Latents of the VAE to latents of the transformer."""
        return (latents - self.shift) * self.scale

    def inverse(self, latents: Tensor) -> Tensor:
        """Latents of the transformer to latents of the VAE, in the operations of `FluxPipeline`."""
        return latents / self.scale + self.shift


def crop_pixels(pixels: NDArray[np.uint8], box: Box, side: int) -> NDArray[np.uint8]:
    """The region `(x, y, w, h)` of an image `[H, W, 3]`, resized to `[side, side, 3]`; its aspect ratio is not kept.

    Raises `DataError` if the region is not inside the image.
    """
    height, width = pixels.shape[:2]
    x, y, w, h = box
    if not (0 <= x < x + w <= width + 1e-3 and 0 <= y < y + h <= height + 1e-3):
        raise DataError(
            f"crop {box} is not inside the image of {width} × {height} pixels; image_data.json states another size"
        )
    region = (x, y, min(x + w, width), min(y + h, height))
    image = Image.fromarray(pixels).resize((side, side), Image.Resampling.LANCZOS, box=region)
    return np.asarray(image)


@torch.no_grad()
def encode(vae: Any, pixels: Sequence[NDArray[np.uint8]]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation `[B, C, h, w]`, float32, of the posterior of pictures `[H, W, 3]`, 0–255.

    Raises `ModelError` if a value is not finite.
    """
    batch = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).to(vae.device)
    # in the order of diffusers' VaeImageProcessor, whose pixels are float32 before they are cast
    posterior = vae.encode((2.0 * (batch.float() / 255.0) - 1.0).to(vae.dtype)).latent_dist
    mean, std = posterior.mean.float().cpu(), posterior.std.float().cpu()
    if not (torch.isfinite(mean).all() and torch.isfinite(std).all()):
        raise ModelError("vae: its posterior is not finite; set backbone.dtype to bfloat16 or float32")
    return mean, std


@torch.no_grad()
def decode(vae: Any, latents: Tensor) -> NDArray[np.uint8]:
    """Pictures `[B, H, W, 3]`, 0–255, of the transformer's latents `[B, C, h, w]`, as `FluxPipeline` decodes them."""
    images = vae.decode(Scaling.of(vae.config).inverse(latents).to(vae.device, vae.dtype)).sample
    images = (images * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).float().cpu().numpy()
    return (images * 255).round().astype(np.uint8)
