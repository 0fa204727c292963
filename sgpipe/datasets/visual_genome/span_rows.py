"""One span of each file to rows of its table and to what the later passes look up.

Spans of image_data.json leave the sizes of the images, those of objects.json lookup entries and relations derived from boxes.
A position is an index into the images sorted by id.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sgpipe.datasets import rows
from sgpipe.datasets.base import MISSING, Batch
from sgpipe.datasets.config import Geometric
from sgpipe.datasets.tables import BOX
from sgpipe.datasets.visual_genome.lookup import Lookups, combined_keys, find_sorted, write_lookup
from sgpipe.datasets.visual_genome.records import (
    Decoded,
    ImageRecord,
    ObjectRecord,
    ObjectsRecord,
    RelationshipsRecord,
    Release,
    decode,
)  # fmt: skip
from sgpipe.datasets.visual_genome.spans import Span
from sgpipe.relations.aliases import PredicateMap, canonical_names, read_aliases

ALIASES = ("object_alias.txt", "relationship_alias.txt")
"""Official files of aliases, which may be absent."""


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


@dataclass(frozen=True)
class Rows:
    """What became of one span: the number of its records, the positions of their images, and the batch; `record` of its rejects
    counts from the span's first record.
    """

    records: int
    positions: NDArray[np.int64]
    batch: Batch


def _column(records: Sequence[Any], name: str) -> NDArray[np.int64]:
    return np.fromiter(map(attrgetter(name), records), np.int64, len(records))


class ImagesReader:
    """Reads spans of image_data.json in order; keeps the id, width and height of every image (24 bytes each)."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._parts: list[NDArray[np.int64]] = []
        self._seen: set[int] = set()

    def rows(self, span: Span, *_: object) -> Rows:
        """Rows of one span. Raises `Malformed` if the span is no JSON list."""
        key = self._setup.keys[0]
        decoded = decode(span.read(), ImageRecord, key)
        images = np.stack([_column(decoded.records, name) for name in (key, "width", "height")])
        urls = [record.url for record in decoded.records]
        again, kept, rejects = rows.image_tables(span.path.name, decoded.index, images, urls, self._seen, decoded.invalid)
        self._parts.append(images[:, ~again])
        return Rows(decoded.count, np.zeros(0, dtype=np.int64), Batch("images", span.path, decoded.count, kept, rejects))

    def save(self) -> int:
        """Leave ids and sizes for the other passes in `images.npy`, sorted by id; the number of images."""
        images = np.concatenate(self._parts, axis=1)
        np.save(self._setup.folder / "images.npy", images[:, np.argsort(images[0])])
        return images.shape[1]


class SpanReader:
    """Reads spans of the other two files; has what a process keeps between spans."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._image_ids, self._widths, self._heights = np.load(setup.folder / "images.npy")
        objects, relations = (setup.root / name for name in ALIASES)
        self._name_of = canonical_names(read_aliases(objects) if objects.is_file() else {})
        self._codes_of = rows.PredicateCodes(PredicateMap.load(relations if relations.is_file() else None))
        self._lookups = Lookups(setup.folder)

    def objects(self, span: Span, number: int, seen: frozenset[int]) -> Rows:
        """Rows of a span of objects.json; its lookup entries go to `objects-<number>.arrow`.

        `seen` are positions of images met in earlier spans. Raises `Malformed` if the span is no JSON list.
        """
        decoded = decode(span.read(), ObjectsRecord, self._setup.keys[0])
        flat = [item for record in decoded.records for item in record.objects]
        items, position, present = self._items(span, decoded, [len(record.objects) for record in decoded.records], seen)
        objects, raw_names, boxes = self._checked(flat, position)
        keep, kept, rejects = rows.object_tables(items, objects, raw_names, boxes, decoded.invalid)
        merged = [(row, other) for row, index in enumerate(keep.tolist()) for other in flat[index].merged_object_ids or ()]
        pairs = np.array(merged, dtype=np.int64).reshape(-1, 2)
        write_lookup(self._setup.folder / f"objects-{number}.arrow", position[keep], objects.ids[keep], pairs, kept)
        derived = rows.geometric_relations(self._setup.geometric, kept, objects.boxes[keep])
        read = len(flat) + len(decoded.invalid)
        return Rows(decoded.count, present, Batch("objects", span.path, read, kept, rejects, derived))

    def relationships(self, span: Span, number: int, seen: frozenset[int]) -> Rows:
        """Rows of a span of relationships.json; see `objects`."""
        image_key, _, relation_key = self._setup.keys
        decoded = decode(span.read(), RelationshipsRecord, image_key)
        flat = [item for record in decoded.records for item in record.relationships]
        items, position, present = self._items(span, decoded, [len(record.relationships) for record in decoded.records], seen)
        image = np.where(items.codes == 0, np.searchsorted(present, position), -1)
        records = [*(item.subject for item in flat), *(item.object for item in flat)]
        joined, ends = self._endpoints(records, np.tile(image, 2), np.tile(position, 2), present)
        ids, raw = _column(flat, relation_key), [item.predicate for item in flat]
        kept, rejects = rows.relation_tables(items, ids, raw, self._codes_of, joined.reshape(2, -1), ends, decoded.invalid)
        return Rows(decoded.count, present, Batch("relations", span.path, len(flat) + len(decoded.invalid), kept, rejects))

    def _items(
        self, span: Span, decoded: Decoded[Any], counts: list[int], seen: frozenset[int]
    ) -> tuple[rows.Items, NDArray[np.int64], NDArray[np.int64]]:
        """The items of decoded records, `counts` of each; the position of each one's image, and of the images that are sound."""
        images = _column(decoded.records, self._setup.keys[0])
        positions = find_sorted(self._image_ids, images)
        again = rows.repeated(positions) | np.isin(positions, np.fromiter(seen, np.int64, len(seen)))
        codes = np.select([positions < 0, again], [rows.CODE["image unknown"], rows.CODE["image repeated"]], 0)
        items = rows.Items.of(span.path.name, decoded.index, images, codes, counts)
        return items, positions[items.owner], np.unique(positions[codes == 0])

    def _checked(
        self, records: list[ObjectRecord], position: NDArray[np.int64]
    ) -> tuple[rows.Objects, list[str], NDArray[np.float64]]:
        """Checked objects, their names (the first of `names`, else `name`), boxes as annotated; `position` is of their images."""
        raw_names = [record.names[0] if record.names else record.name or "" for record in records]
        boxes = np.empty((len(records), 4))
        for column, name in enumerate(BOX):
            boxes[:, column] = np.fromiter(map(attrgetter(name), records), np.float64, len(records))
        names = pa.array(map(self._name_of, raw_names), pa.string(), size=len(raw_names))
        ids = _column(records, self._setup.keys[1])
        return rows.Objects.of(ids, names, boxes, self._widths[position], self._heights[position]), raw_names, boxes

    def _endpoints(
        self, records: list[ObjectRecord], image: NDArray, position: NDArray, present: NDArray
    ) -> tuple[NDArray[np.int64], rows.Objects]:
        """Row of each endpoint in the objects that come second: those of the lookup, then those that only endpoints describe.

        An endpoint is found by its id, else by an id merged into it, else it gets a row of its own. `image` is an index into
        `present`, -1 for none.
        """
        keys, objects = self._lookups.of(present)
        ids = _column(records, self._setup.keys[1])
        found = find_sorted(keys, combined_keys(image, np.maximum(ids, 0)))
        found[(ids == MISSING) | (image < 0)] = -1
        for row in np.flatnonzero((found < 0) & (image >= 0)).tolist():
            if merged := records[row].merged_object_ids:
                hits = find_sorted(keys, combined_keys(np.full(len(merged), image[row]), np.array(merged, dtype=np.int64)))
                found[row] = next((hit for hit in hits.tolist() if hit >= 0), -1)
        own_rows = np.flatnonzero(found < 0)
        found[own_rows] = len(keys) + np.arange(len(own_rows))
        own, _, _ = self._checked([records[row] for row in own_rows.tolist()], position[own_rows])
        return found, objects.followed_by(own)
