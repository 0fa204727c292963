"""Objects of images by id, left on disk by the pass over objects.json and read back by the pass over relationships.json.

One file for each span of objects.json, so memory does not grow with the data. Both files are ordered by image as published,
so a span of relationships needs one or two of them; one that is not ordered needs more, and takes longer.
"""

from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sgpipe.datasets.base import ID_BITS
from sgpipe.datasets.rows import Objects
from sgpipe.datasets.tables import BOX

_HELD = 2


def combined_keys(image: NDArray[np.int64], ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """One integer for a (record or image index within a span, id) pair."""
    return (image << ID_BITS) | ids


def find_sorted(known: NDArray[np.int64], values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Index of each value in `known`, which is sorted; -1 where it is not there."""
    if not len(known):
        return np.full(len(values), -1)
    at = np.minimum(np.searchsorted(known, values), len(known) - 1)
    return np.where(known[at] == values, at, -1)


def write_lookup(path: Path, positions: NDArray, ids: NDArray, merged: NDArray, objects: pa.Table) -> None:
    """Write one entry per object and per id merged into one. `merged` is `[M, 2]`: row of `objects`, merged id."""
    rows = np.concatenate([np.arange(len(ids)), merged[:, 0]])
    columns = {"position": positions[rows], "id": np.concatenate([ids, merged[:, 1]])}
    columns |= {name: objects[name].take(pa.array(rows)) for name in ("object_id", "name", *BOX)}
    table = pa.table(columns)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


class Lookups:
    """The lookup files of a folder, of which the last two that were read stay in memory."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._table = lru_cache(_HELD)(self._read)

    @cached_property
    def _owners(self) -> NDArray[np.int64]:
        """Number of the file of each image by position, -1 for none; from `owners.npy`, written after the objects."""
        return np.load(self._folder / "owners.npy")

    def _read(self, number: int) -> pa.Table:
        with pa.OSFile(str(self._folder / f"objects-{number}.arrow"), "rb") as source:
            return pa.ipc.open_file(source).read_all()

    def of(self, images: NDArray[np.int64]) -> tuple[NDArray[np.int64], Objects]:
        """Entries of `images` (sorted positions): sorted keys, of an index into `images` and an object id, and their objects.

        An object's own id comes before a merged one.
        """
        owners = np.unique(self._owners[images])
        tables = []
        for owner in owners[owners >= 0].tolist():
            table = self._table(owner)
            tables.append(table.filter(pa.array(np.isin(table["position"].to_numpy(), images))))
        if not tables:
            empty = np.zeros(0, dtype=np.int64)
            return empty, Objects(empty, pa.chunked_array([], pa.string()), np.zeros((0, 4)), empty)
        table = pa.concat_tables(tables)
        keys = combined_keys(np.searchsorted(images, table["position"].to_numpy()), table["id"].to_numpy())
        unique, first = np.unique(keys, return_index=True)
        table = table.take(pa.array(first))
        boxes = np.stack([table[name].to_numpy() for name in BOX], axis=1).astype(np.float64)
        return unique, Objects(table["object_id"].to_numpy(), table["name"], boxes, np.zeros(len(first), dtype=np.int64))
