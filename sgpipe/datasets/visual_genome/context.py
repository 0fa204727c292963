"""What every process needs to turn a span of JSON into rows: the images, the names, the predicates, the shared folder."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sgpipe.datasets.base import Batch
from sgpipe.datasets.config import Geometric
from sgpipe.datasets.rows import CODE, repeated
from sgpipe.datasets.visual_genome.lookup import Lookups
from sgpipe.datasets.visual_genome.records import Release
from sgpipe.relations.aliases import Names, PredicateMap, read_aliases


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

    def behind(self, records: int) -> Self:
        """The same rows of a span before which the file has so many records."""
        index = pc.add(self.rejects["record"], records)
        at = self.rejects.schema.get_field_index("record")
        return replace(self, rejects=self.rejects.set_column(at, "record", index))

    def batch(self, kind: Literal["images", "objects", "relations"], file: Path) -> Batch:
        """As the canonical tables take them."""
        return Batch(kind, file, self.read, self.kept, self.rejects, self.geometric)


def record_codes(positions: NDArray[np.int64], seen: frozenset[int]) -> NDArray[np.int64]:
    """Reason code of each image record: unknown to image_data.json, or met before (in this span or as one of `seen`)."""
    codes = np.where(positions < 0, CODE["image unknown"], 0)
    again = repeated(positions) | np.isin(positions, np.fromiter(seen, np.int64, len(seen)))
    return np.where((codes == 0) & again, CODE["image repeated"], codes)
