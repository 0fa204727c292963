"""Which split an image belongs to: a published list, else a hash of the image id."""

from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from sgpipe.datasets.base import Id, decode_whole
from sgpipe.datasets.config import Splits
from sgpipe.errors import DataError
from sgpipe.runs.hashing import fraction

NAMES = ("train", "val", "test")
UNLISTED = "none"


def read_split_file(path: Path) -> dict[str, list[int]]:
    """`{split: [image ids]}`. Raises `DataError` if an image stands in two splits or the file is no such mapping."""
    if not path.is_file():
        raise DataError(f"{path}: no such split file; set canonicalize.splits.file to one, or to null for hashed splits")
    try:
        splits = decode_whole(path.read_bytes(), dict[str, list[Id]])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{path}: not a JSON mapping of split names to lists of image ids: {error}") from None
    unknown = sorted(set(splits) - set(NAMES))
    if unknown:
        raise DataError(f"{path}: split {unknown[0]!r} is unknown; valid: {', '.join(NAMES)}")
    seen: dict[int, str] = {}
    for name, ids in splits.items():
        for image_id in ids:
            if seen.setdefault(image_id, name) != name:
                raise DataError(f"{path}: image {image_id} is in {seen[image_id]} and in {name}; an image has one split")
    return splits


class Splitter:
    """Gives images their split: train, val, test, or `none` where a split file does not name the image."""

    def __init__(self, params: Splits) -> None:
        self._params = params
        self._listed = None
        if params.file is not None:
            listed = read_split_file(Path(params.file))
            self._listed = {name: np.array(ids, dtype=np.int64) for name, ids in listed.items()}

    def __call__(self, image_ids: NDArray[np.int64]) -> NDArray[np.str_]:
        """Split of each image id."""
        if self._listed is None:
            train, val = self._params.train, self._params.val
            u = fraction(self._params.seed, "split", image_ids)
            return np.select([u < train, u < train + val], ["train", "val"], "test")
        result = np.full(len(image_ids), UNLISTED, dtype="<U5")
        for name, ids in self._listed.items():
            result[np.isin(image_ids, ids)] = name
        return result
