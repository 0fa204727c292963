"""Images and latents: crops to pixels, pixels to the VAE's posterior, latents to images."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sgpipe.datasets.images import AnnotatedImage, AspectRatioError, Box, LoadImage
from sgpipe.errors import DataError, ModelError
from sgpipe.runs.atomic import atomic_path

if TYPE_CHECKING:  # who judges images needs no transformer
    from sgpipe.backbones.base import Family

FILTER = "lanczos"
"""Lanczos-3 with support scaled by the reduction, so that shrinking does not alias; an unscaled crop on whole pixels is exact."""
COUNTS = "counts.json"
"""What became of a shard's crops: how many are `rescaled`, and how many were rejected for each reason."""


class CropRejected(DataError):
    """A crop that cannot be read; `reason` is what is counted, the message says why."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def crop_pixels(image: AnnotatedImage, box: Box, side: int) -> NDArray[np.uint8]:
    """The annotated region `(x, y, w, h)` of an image, resized to `[side, side, 3]`; its aspect ratio is not kept.

    Raises `DataError` if the region is not inside the annotated size.
    """
    whole = Image.fromarray(image.pixels)
    return np.asarray(whole.resize((side, side), Image.Resampling.LANCZOS, box=image.region(box)))


def read_crop(load: LoadImage, image_id: int, box: Box, side: int) -> tuple[NDArray[np.uint8], bool]:
    """The crop `[side, side, 3]` of an image, and whether its box was rescaled. Raises `CropRejected` with the reason."""
    try:
        image = load(image_id)
    except AspectRatioError as error:
        raise CropRejected("aspect ratio differs", str(error)) from error
    except DataError as error:
        raise CropRejected("image unreadable", str(error)) from error
    try:
        return crop_pixels(image, box, side), image.rescaled
    except DataError as error:
        raise CropRejected("crop outside image", str(error)) from error


def say_rescaled(stage: str, rescaled: int, read: int) -> None:
    """Tell on stderr how many crops come of resized copies of the annotated images, if any do."""
    if rescaled:
        print(
            f"{stage}: {rescaled} of {read} crops are of images of another size than the annotations state; "
            "their boxes were rescaled",
            file=sys.stderr,
        )


@torch.no_grad()
def encode(family: "Family", vae: Any, pixels: Sequence[NDArray[np.uint8]]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation `[B, C, h, w]`, float32, of the posterior of images `[H, W, 3]`, 0–255.

    Raises `ModelError` if a value is not finite.
    """
    batch = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).to(vae.device)
    # in the order of diffusers' VaeImageProcessor, whose pixels are float32 before they are cast
    scaled = (2.0 * (batch.float() / 255.0) - 1.0).to(vae.dtype)
    posterior = vae.encode(scaled.unsqueeze(2) if family.frames else scaled).latent_dist
    mean, std = (each.squeeze(2) if family.frames else each for each in (posterior.mean.float().cpu(), posterior.std.float().cpu()))
    if not (torch.isfinite(mean).all() and torch.isfinite(std).all()):
        raise ModelError("vae: its posterior is not finite; set backbone.dtype to bfloat16 or float32")
    return mean, std


@torch.no_grad()
def decode(family: "Family", vae: Any, latents: Tensor) -> NDArray[np.uint8]:
    """Images `[B, H, W, 3]`, 0–255, of the transformer's latents `[B, C, h, w]`, as the family's pipeline decodes them."""
    latents = family.denormalised(family.statistics(vae), latents).to(vae.device, vae.dtype)
    images = vae.decode(latents.unsqueeze(2) if family.frames else latents).sample
    images = images.squeeze(2) if family.frames else images
    images = (images * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).float().cpu().numpy()
    return (images * 255).round().astype(np.uint8)


def write_images(images: NDArray[np.uint8], seeds: Sequence[int], out: Path) -> Iterator[Path]:
    """Write images `[N, H, W, 3]` as PNG and yield where each is: one as `out`, of several each with its seed in the name."""
    for image, seed in zip(images, seeds, strict=True):
        path = out if len(images) == 1 else out.with_stem(f"{out.stem}-{seed}")
        with atomic_path(path) as temporary:
            Image.fromarray(image).save(temporary, format="PNG")
        yield path
