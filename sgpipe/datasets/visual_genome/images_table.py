"""image_data.json to `images.parquet`, and to the arrays of ids and sizes that the other passes look up."""

from operator import attrgetter

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sgpipe.datasets.records import UNSPLIT
from sgpipe.datasets.rows import reject_table, repeated
from sgpipe.datasets.visual_genome.context import Rows, Setup
from sgpipe.datasets.visual_genome.records import ImageRecord, decode
from sgpipe.datasets.visual_genome.spans import Span


class ImagesReader:
    """Reads spans of image_data.json in order; keeps the id, width and height of every image (24 bytes each)."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._parts: list[NDArray[np.int64]] = []
        self._seen: set[int] = set()

    def rows(self, span: Span, number: int, seen: frozenset[int]) -> Rows:
        """Rows of one span. Raises `Malformed` if the span is no JSON list."""
        key = self._setup.keys[0]
        decoded = decode(span.read(), ImageRecord, key)
        records, count = decoded.records, len(decoded.records)
        ids, widths, heights = (
            np.fromiter(map(attrgetter(name), records), np.int64, count) for name in (key, "width", "height")
        )
        again = repeated(ids) | np.fromiter(
            (image_id in self._seen for image_id in ids.tolist()), np.bool_, count
        )
        keep, drop = np.flatnonzero(~again), np.flatnonzero(again)
        self._seen.update(ids[keep].tolist())
        self._parts.append(np.stack([ids[keep], widths[keep], heights[keep]]))
        table = pa.table(
            {
                "image_id": ids[keep],
                "width": widths[keep].astype(np.int32),
                "height": heights[keep].astype(np.int32),
                "url": [records[i].url for i in keep],
            },
            schema=UNSPLIT,
        )
        rejects = reject_table(
            "image_data.json",
            {
                "record": np.array(decoded.index, dtype=np.int64)[drop],
                "image_id": ids[drop],
                "relationship_id": pa.nulls(len(drop), pa.int64()),
                "reason": ["image repeated"] * len(drop),
                "raw": [f"{widths[i]} x {heights[i]}" for i in drop],
            },
            decoded.invalid,
        )
        return Rows(decoded.count, decoded.count, np.zeros(0, dtype=np.int64), table, rejects)

    def save(self) -> int:
        """Leave ids and sizes for the other passes in `images.npy`, sorted by id; the number of images."""
        images = np.concatenate(self._parts, axis=1)
        np.save(self._setup.folder / "images.npy", images[:, np.argsort(images[0])])
        return images.shape[1]
