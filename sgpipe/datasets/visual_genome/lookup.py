"""Objects of images by id, on disk: written while objects.json is read, looked up while relationships.json is.

An image's entries lie together, sorted by id, so a span of relationships reads what its images need, whatever order the files have,
and memory holds 24 bytes per image.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from sgpipe.datasets.base import ID_BITS

ENTRY: Final = np.dtype([("id", np.int64), ("object_id", np.int64), ("name", np.int32), ("box", np.float32, 4)])
"""An id, its own or merged, of an object; the object's own id, the number of its name, and its box."""

NAMES: Final = ("objects.json", "objects_v1_2.json")
"""Lookups by the file that their objects are of."""


def find_sorted(known: NDArray[np.int64], values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Index of each value in `known`, which is sorted; -1 where it is not there."""
    if not len(known):
        return np.full(len(values), -1)
    at = np.minimum(np.searchsorted(known, values), len(known) - 1)
    return np.where(known[at] == values, at, -1)


class LookupWriter:
    """Writes entries to a new folder, a lookup; each image's must come at once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir()
        self._stream = (folder / "entries.bin").open("wb")
        self._parts = [np.zeros((3, 0), dtype=np.int64)]
        self._length = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()
        index = np.concatenate(self._parts, axis=1)
        np.save(self._folder / "index.npy", index[:, np.argsort(index[0])])

    def write(self, images: NDArray[np.int64], entries: NDArray) -> None:
        """Add entries of these images; of two with the same id the first counts."""
        order = np.lexsort([entries["id"], images])
        images, ids = images[order], entries["id"][order]
        again = np.zeros(len(images), dtype=bool)
        again[1:] = (images[1:] == images[:-1]) & (ids[1:] == ids[:-1])
        images = images[~again]
        self._stream.write(entries.take(order[~again]).tobytes())
        unique, start, counts = np.unique(images, return_index=True, return_counts=True)
        self._parts.append(np.stack([unique, self._length + start, counts]))
        self._length += len(images)


@dataclass(frozen=True)
class Entries:
    """Entries of several images, and their keys, which are sorted."""

    keys: NDArray[np.int64]
    entries: NDArray

    def find(self, image: NDArray[np.int64], ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of the entries with these ids in the images of these indices; -1 where there is none."""
        return find_sorted(self.keys, (image << ID_BITS) | np.maximum(ids, 0))


def lookups(folder: Path) -> list["Lookup"]:
    """The lookups that were written into a folder, in the order in which an id is looked for in them."""
    return [Lookup(folder / name) for name in NAMES if (folder / name).is_dir()]


class Lookup:
    """The lookup of a folder, all written."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "entries.bin"
        self._known, self._start, self._counts = np.load(folder / "index.npy")

    def of(self, images: NDArray[np.int64]) -> Entries:
        """Entries of some images."""
        at = find_sorted(self._known, images)
        there = np.flatnonzero(at >= 0)
        start, counts = self._start[at[there]], self._counts[at[there]]
        runs = np.flatnonzero(start != np.append(-1, start + counts)[:-1])  # what lies together is read at once
        lengths = np.add.reduceat(counts, runs) if len(runs) else counts
        places = (ENTRY.itemsize * np.stack([lengths, start[runs]], axis=1)).tolist()
        with self._path.open("rb") as stream:
            entries = np.frombuffer(b"".join([os.pread(stream.fileno(), *place) for place in places]), ENTRY)
        return Entries((there.repeat(counts) << ID_BITS) | entries["id"], entries)
