"""Images of a data folder in Visual Genome's layout, loose or inside the official archives, with their annotated sizes.

Boxes are in pixels of the size that image_data.json states. A file of another size is a resized copy where the two aspect ratios
agree, and boxes are then scaled to it; any other file shows something else than was annotated.
"""

import hashlib
import io
import lzma
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from sgpipe.datasets.visual_genome.records import ImageRecord, Malformed, decode, id_key
from sgpipe.errors import DataError
from sgpipe.runs.state import config_hash

FOLDERS = ("VG_100K", "VG_100K_2")
SUFFIXES = (".jpg", ".png")
ARCHIVES = ("images.zip", "images2.zip")
ARCHIVE_ERRORS = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, OSError, EOFError, RuntimeError, ValueError, MemoryError
)  # fmt: skip
"""What `zipfile` and its decompressors raise for damaged archives, encryption, and methods that it does not know."""
SIZES = "image_data.json"
ORIENTATION = 0x0112
"""The EXIF tag that says how a viewer turns the stored pixels."""
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
Box = tuple[float, float, float, float]


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
                f"crop {box} is not inside the image of {self.size[0]} × {self.size[1]} pixels that {SIZES} states; "
                "run `dvc repro curate`"
            )
        return x * sx, y * sy, min((x + w) * sx, width), min((y + h) * sy, height)


LoadImage = Callable[[int], AnnotatedImage]


def same_aspect_ratio(size: tuple[int, int], annotated: tuple[int, int]) -> bool:
    """Whether `size` is `annotated` times one factor, each side rounded to a neighbouring whole pixel."""
    (width, height), (w, h) = size, annotated
    return abs(width * h - height * w) < w + h


class ImageStore:
    """Opens images by id: `VG_100K/<id>.jpg` or `VG_100K_2/<id>.jpg` (or .png) under `root`, else in `images.zip`, `images2.zip`.

    Archives and image_data.json are opened on first use; every process needs a store of its own.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._archives: list[tuple[zipfile.ZipFile, dict[str, str]]] | None = None

    def __contains__(self, image_id: int) -> bool:
        return self._loose(image_id) is not None or self._packed(image_id) is not None

    def load(self, image_id: int) -> AnnotatedImage:
        """The image with its annotated size; its EXIF orientation is applied, as viewers and annotation tools do.

        Raises `AspectRatioError` if it cannot be a resized copy of what was annotated, and `DataError` if image_data.json does
        not name it, or if it is missing or cannot be decoded.
        """
        if image_id not in self._sizes:
            raise DataError(f"{self.root / SIZES}: image {image_id} is not named; `dvc repro curate`")
        data, source = self._read(image_id)
        pixels, stored, orientation = _decode(data, source)
        size, annotated = (pixels.shape[1], pixels.shape[0]), self._sizes[image_id]
        if not same_aspect_ratio(size, annotated):
            turned = ""
            if orientation != 1 and same_aspect_ratio(stored, annotated):
                turned = f" once its EXIF orientation {orientation} is applied; store it upright, with boxes to match"
            raise AspectRatioError(
                f"{source}: the image is {size[0]} × {size[1]}{turned or ';'} {SIZES} states {annotated[0]} × {annotated[1]}, "
                "another aspect ratio; get the image again, or correct its entry"
            )
        return AnnotatedImage(pixels, annotated)

    def _read(self, image_id: int) -> tuple[bytes, str]:
        """The encoded image, and the file's name for messages."""
        path = self._loose(image_id)
        if path is not None:
            return path.read_bytes(), str(path)
        packed = self._packed(image_id)
        if packed is None:
            places = ", ".join([*(f"{folder}/{image_id}.jpg" for folder in FOLDERS), *ARCHIVES])
            raise DataError(
                f"{self.root}: image {image_id} is not there (looked for {places}); `sgpipe fetch visual-genome` gets it"
            )
        archive, member = packed
        try:
            return archive.read(member), f"{archive.filename}: {member}"
        except ARCHIVE_ERRORS as error:
            raise DataError(
                f"{archive.filename}: {member} cannot be read: {error}; get the archive again"
            ) from error

    @cached_property
    def _sizes(self) -> dict[int, tuple[int, int]]:
        """Width and height by image id; of a repeated id the first counts, as in canonicalize."""
        path = self.root / SIZES
        key = id_key(path, None)
        try:
            records = decode(path.read_bytes().removeprefix(b"\xef\xbb\xbf"), ImageRecord, key).records
        except Malformed as error:
            raise DataError(f"{path}: {error}; the file is damaged, get it again") from None
        return {getattr(record, key): (record.width, record.height) for record in reversed(records)}

    def signature(self) -> str:
        """A hash that changes with the images: file sizes of loose ones, checksums of packed ones, and the annotated sizes.

        Raises `DataError` for an archive or an image_data.json that cannot be read.
        """
        self._packed(0)
        entries = [f"{SIZES} {config_hash(sorted(self._sizes.items()))}"]
        entries += [
            f"{path.parent.name}/{path.name} {path.stat().st_size}"
            for folder in FOLDERS
            for path in (self.root / folder).glob("*")
            if path.suffix in SUFFIXES
        ]
        for archive, members in self._archives or ():
            entries += [f"{member} {archive.getinfo(member).CRC}" for member in members.values()]
        return hashlib.sha256("\n".join(sorted(entries)).encode()).hexdigest()[:16]

    def _loose(self, image_id: int) -> Path | None:
        paths = (self.root / folder / f"{image_id}{suffix}" for folder in FOLDERS for suffix in SUFFIXES)
        return next((path for path in paths if path.is_file()), None)

    def _packed(self, image_id: int) -> tuple[zipfile.ZipFile, str] | None:
        if self._archives is None:
            self._archives = []
            for name in ARCHIVES:
                path = self.root / name
                if not path.is_file():
                    continue
                try:
                    archive = zipfile.ZipFile(path)
                except ARCHIVE_ERRORS as error:
                    raise DataError(f"{path}: not a readable archive: {error}; get it again") from error
                members = {
                    Path(member).stem: member
                    for member in archive.namelist()
                    if Path(member).suffix in SUFFIXES
                }
                self._archives.append((archive, members))
        found = ((archive, members.get(str(image_id))) for archive, members in self._archives)
        return next(((archive, member) for archive, member in found if member is not None), None)


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
