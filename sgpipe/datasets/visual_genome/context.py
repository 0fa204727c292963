"""What every process needs to turn a span of JSON into rows: the images, the names, the predicates, the shared folder."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sgpipe.datasets.config import Geometric
from sgpipe.datasets.tables import REJECTS
from sgpipe.datasets.visual_genome.lookup import Lookups
from sgpipe.datasets.visual_genome.records import Invalid, Release
from sgpipe.relations.aliases import Names, PredicateMap, read_aliases

REASONS = (
    "kept",
    "invalid",
    "image unknown",
    "image repeated",
    "id missing",
    "name empty",
    "name invalid",
    "box empty",
    "box outside image",
    "self-loop",
    "id repeated",
    "relation repeated",
)
"""Why a record is dropped, apart from its predicate; the first that holds is given. Index 0 is no reason."""
CODE = {reason: code for code, reason in enumerate(REASONS)}


@dataclass(frozen=True)
class Setup:
    """Given to every process at its start. `folder` holds `images.npy` and what the processes leave for one another."""

    root: Path
    folder: Path
    release: Release
    geometric: Geometric

    @property
    def keys(self) -> tuple[str, str, str]:
        """Names of the image, object and relationship id in this release."""
        return ("id", "id", "id") if self.release == "v1.0" else ("image_id", "object_id", "relationship_id")


def alias_file(root: Path, name: str) -> Path | None:
    """An official alias file, if it is there."""
    return root / name if (root / name).is_file() else None


@dataclass
class Context:
    """A process's view of a `Setup`. Images are sorted by id; a position below is an index into that order."""

    setup: Setup
    image_ids: NDArray[np.int64] = field(init=False)
    widths: NDArray[np.int64] = field(init=False)
    heights: NDArray[np.int64] = field(init=False)
    names: Names = field(init=False)
    predicates: PredicateMap = field(init=False)
    lookups: Lookups = field(init=False)

    def __post_init__(self) -> None:
        self.image_ids, self.widths, self.heights = np.load(self.setup.folder / "images.npy")
        self.lookups = Lookups(self.setup.folder)
        objects = alias_file(self.setup.root, "object_alias.txt")
        self.names = Names(read_aliases(objects) if objects else {})
        self.predicates = PredicateMap.load(alias_file(self.setup.root, "relationship_alias.txt"))

    def positions(self, image_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Position of each image, -1 for one that image_data.json does not name."""
        if not len(self.image_ids):
            return np.full(len(image_ids), -1)
        at = np.minimum(np.searchsorted(self.image_ids, image_ids), len(self.image_ids) - 1)
        return np.where(self.image_ids[at] == image_ids, at, -1)


@dataclass(frozen=True)
class Rows:
    """What became of one span. `read` items = `kept` rows + `rejects` rows."""

    records: int
    read: int
    positions: NDArray[np.int64]
    kept: pa.Table
    rejects: pa.Table
    geometric: pa.Table | None = None


def record_codes(positions: NDArray[np.int64], seen: frozenset[int]) -> NDArray[np.int64]:
    """Reason code of each image record: unknown to image_data.json, or met before (in this span or as one of `seen`)."""
    codes = np.where(positions < 0, CODE["image unknown"], 0)
    again = repeated(positions) | np.isin(positions, np.fromiter(seen, np.int64, len(seen)))
    return np.where((codes == 0) & again, CODE["image repeated"], codes)


def repeated(*columns: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Marks every row whose values were met in an earlier row."""
    order = np.lexsort(columns[::-1])
    same = np.ones(max(len(order) - 1, 0), dtype=bool)
    for column in columns:
        same &= column[order][1:] == column[order][:-1]
    result = np.zeros(len(order), dtype=bool)
    result[order[1:][same]] = True
    return result


def reject_table(file: str, columns: dict[str, Any], invalid: list[Invalid]) -> pa.Table:
    """Rows of `rejects.parquet` for one span; `columns` without `file`, then the records that could not be read at all."""
    rows = len(columns["reason"])
    sound = pa.table({"file": pa.repeat(file, rows), **columns}, schema=REJECTS)
    if not invalid:
        return sound
    damaged = pa.table(
        {
            "file": pa.repeat(file, len(invalid)),
            "record": [item.record for item in invalid],
            "image_id": [item.image_id for item in invalid],
            "relationship_id": [item.item_id for item in invalid],
            "reason": pa.repeat("invalid", len(invalid)),
            "raw": [item.raw for item in invalid],
        },
        schema=REJECTS,
    )
    return pa.concat_tables([sound, damaged])
