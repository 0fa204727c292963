"""Images of a data set with their annotated sizes.

Boxes are in pixels of the size that the annotations state. A file of another size is a resized copy where the two aspect ratios
agree, and boxes are then scaled to it; any other file shows something else than was annotated.
"""

import hashlib
import io
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from sgpipe.datasets.base import VISUAL_GENOME, ImageFiles
from sgpipe.datasets.built_in import open_other
from sgpipe.datasets.config import Data
from sgpipe.errors import DataError
from sgpipe.relations.boxes import Box
from sgpipe.runs.state import config_hash

ORIENTATION = 0x0112
"""The EXIF tag that says how a viewer turns the stored pixels."""
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}  # fmt: skip


class AspectRatioError(DataError):
    """An image whose aspect ratio is not that of its annotated size, so that its boxes mean nothing in it."""


@dataclass(frozen=True)
class AnnotatedImage:
    """An image as RGB `pixels` `[H, W, 3]`, 0–255, upright, and its annotated `size` (width, height), which boxes refer to."""

    pixels: NDArray[np.uint8]
    size: tuple[int, int]

    @property
    def scale(self) -> tuple[float, float]:
        """Pixels of the image per annotated pixel, along x and y."""
        height, width = self.pixels.shape[:2]
        return width / self.size[0], height / self.size[1]

    @property
    def rescaled(self) -> bool:
        """Whether boxes have to be scaled."""
        return self.scale != (1.0, 1.0)

    def region(self, box: Box) -> Box:
        """The annotated box `(x, y, w, h)` as left, top, right and bottom edge in pixels of the image.

        Raises `DataError` if the box is not inside the annotated size.
        """
        height, width = self.pixels.shape[:2]
        (x, y, w, h), (sx, sy) = box, self.scale
        if not (0 <= x < x + w <= self.size[0] + 1e-3 and 0 <= y < y + h <= self.size[1] + 1e-3):
            raise DataError(
                f"crop {box} is not inside the image of {self.size[0]} × {self.size[1]} pixels that the annotations state; "
                "run `dvc repro curate`"
            )
        return x * sx, y * sy, min((x + w) * sx, width), min((y + h) * sy, height)


LoadImage = Callable[[int], AnnotatedImage]


def same_aspect_ratio(size: tuple[int, int], annotated: tuple[int, int]) -> bool:
    """Whether `size` is `annotated` times one factor, each side rounded to a neighbouring whole pixel."""
    (width, height), (w, h) = size, annotated
    return abs(width * h - height * w) < w + h


def open_images(data: Data) -> ImageFiles:
    """The images of the data set that params.yaml names. Raises `ParamsError` for an unknown kind."""
    if data.kind != VISUAL_GENOME:
        return open_other(data)
    from sgpipe.datasets.visual_genome.images import VisualGenomeImages

    return VisualGenomeImages(Path(data.root))


class ImageStore:
    """Opens images by id. Every process needs a store of its own: `files` may hold archives open."""

    def __init__(self, files: ImageFiles) -> None:
        self.files = files

    @cached_property
    def _sizes(self) -> Mapping[int, tuple[int, int]]:
        return self.files.sizes()

    def load(self, image_id: int) -> AnnotatedImage:
        """The image with its annotated size; its EXIF orientation is applied, as viewers and annotation tools do.

        Raises `AspectRatioError` if it cannot be a resized copy of what was annotated, and `DataError` if no annotation names it,
        or if it is missing or cannot be decoded.
        """
        stated = self.files.sizes_file
        if image_id not in self._sizes:
            raise DataError(f"{stated}: image {image_id} is not named; `dvc repro curate`")
        data, source = self.files.read(image_id)
        pixels, stored, orientation = _decode(data, source)
        size, annotated = (pixels.shape[1], pixels.shape[0]), self._sizes[image_id]
        if not same_aspect_ratio(size, annotated):
            turned = ""
            if orientation != 1 and same_aspect_ratio(stored, annotated):
                turned = f" once its EXIF orientation {orientation} is applied; store it upright, with boxes to match"
            raise AspectRatioError(
                f"{source}: the image is {size[0]} × {size[1]}{turned or ';'} {stated.name} states {annotated[0]} × "
                f"{annotated[1]}, another aspect ratio; get the image again, or correct its entry"
            )
        return AnnotatedImage(pixels, annotated)

    def signature(self) -> str:
        """A hash that changes with the images and with the annotated sizes.

        Raises `DataError` for an archive or a file of sizes that cannot be read.
        """
        sizes = f"{self.files.sizes_file.name} {config_hash(sorted(self._sizes.items()))}"
        return hashlib.sha256("\n".join(sorted([sizes, *self.files.files().values()])).encode()).hexdigest()[:16]


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (stored upright) where there is none or where the block that states it is damaged."""
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except (SyntaxError, struct.error, ValueError, KeyError, TypeError):
        return 1
    return value if value in _UPRIGHT else 1


def _decode(data: bytes, source: str) -> tuple[NDArray[np.uint8], tuple[int, int], int]:
    """Upright RGB pixels, the stored size (width, height), and the EXIF orientation (1: stored upright)."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            orientation = _orientation(image)
            upright = image if orientation == 1 else image.transpose(_UPRIGHT[orientation])
            return np.asarray(upright.convert("RGB")), image.size, orientation
    except UnidentifiedImageError:
        raise DataError(f"{source}: the image cannot be decoded: no known format; get it again") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{source}: the image cannot be decoded: {error}; get it again") from error
