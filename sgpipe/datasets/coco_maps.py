"""Segments of images whose pixels say which segment they belong to: COCO-Stuff's pixel maps and COCO's panoptic PNGs.

Area, box and centroid of every segment come from sums over the runs of equal pixels of the rows.
"""

import io
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sgpipe.datasets.image_files import StoredImages
from sgpipe.errors import DataError

_AT_ONCE: Final = 512


@dataclass(frozen=True)
class Segments:
    """The segments of an image `[N]` by rising label: labels, boxes `[N, 4]` as COCO makes them of masks, centroids `[N, 2]`."""

    labels: NDArray[np.int64]
    boxes: NDArray[np.float64]
    centres: NDArray[np.float64]


def segments_of(labels: NDArray) -> Segments:
    """Of an image of labels `[H, W]`. Pixels are squares of side 1, as COCO's polygons have it."""
    height, width = labels.shape
    flat = labels.reshape(-1)
    begins = np.ones(flat.shape, np.bool_)
    np.not_equal(flat[1:], flat[:-1], out=begins[1:])
    begins[::width] = True
    start = np.flatnonzero(begins)
    length = np.diff(start, append=len(flat))
    row, left = np.divmod(start, width)
    found, owner = np.unique(flat[start], return_inverse=True)
    area = np.bincount(owner, length)
    x, y = (np.bincount(owner, length * middle) / area for middle in (left + length / 2, row + 0.5))
    low, high = np.full((2, len(found)), max(height, width)), np.zeros((2, len(found)), np.int64)
    for axis, (first, last) in enumerate(((left, left + length), (row, row + 1))):
        np.minimum.at(low[axis], owner, first)
        np.maximum.at(high[axis], owner, last)
    boxes = np.concatenate([low, high - low]).T.astype(np.float64)
    return Segments(found.astype(np.int64), boxes, np.stack([x, y], axis=1))


class SegmentMaps(StoredImages):
    """PNGs `<twelve digits>.png`, loose in a folder or packed in an archive; the first place that is there counts."""

    def __init__(self, root: Path, folders: Iterable[str], archives: Iterable[str]) -> None:
        super().__init__(root)
        self.folders = tuple(name for name in folders if (root / name).is_dir())
        self.archives = tuple(name for name in archives if (root / name).is_file())

    def __bool__(self) -> bool:
        return bool(self.folders or self.archives)

    @property
    def place(self) -> Path:
        """The folder or archive, for messages."""
        return self.root / [*self.folders, *self.archives][0]

    def stem(self, image_id: int) -> str:
        """Twelve digits."""
        return f"{image_id:012}"

    def remedy(self, triples: Path | None = None) -> str:
        """What to do where a map is missing."""
        return "get it again"

    def segments(self, image_id: int, width: int, height: int) -> Segments | str:
        """The segments of an image of this size by label, of colours red + 256 green + 65,536 blue; else why there are none."""
        if image_id not in self:
            return f"{self.place}: no {self.stem(image_id)}.png; {self.remedy()}"
        try:
            text, name = self.read(image_id)
            with Image.open(io.BytesIO(text)) as image:
                if image.size != (width, height):
                    return f"{name}: {image.width} x {image.height} pixels, the image has {width} x {height}"
                if image.mode in ("L", "P"):
                    return segments_of(np.asarray(image))
                if image.mode != "RGB":
                    return f"{name}: pixels of mode {image.mode}; L, P or RGB is needed"
                # Pillow fills the fourth byte with 255
                return segments_of(np.frombuffer(image.convert("RGBA").tobytes(), "<u4").reshape(height, width) & 0xFFFFFF)
        except DataError as error:
            return str(error)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            return f"{self.stem(image_id)}.png: the image cannot be read: {' '.join(str(error).split())}"

    def of(self, images: Iterable[tuple[int, int, int]], workers: int) -> Iterator[Segments | str]:
        """`segments` of images in their order, several at a time."""
        pending = iter(images)
        with ThreadPoolExecutor(max(workers, 1)) as pool:
            while some := list(islice(pending, _AT_ONCE)):
                yield from pool.map(self.segments, *zip(*some, strict=True))
