"""Columns of spans, in the order of the files, to rows of the tables and of the rejects.

Images leave their sizes, objects their entries in the lookup and relations derived from boxes. A position is an index into the
images sorted by id.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sgpipe.datasets import rows
from sgpipe.datasets.base import Batch, Work
from sgpipe.datasets.visual_genome.columns import Columns, Described, Images, Objects, Relations, Texts, read_spans
from sgpipe.datasets.visual_genome.lookup import ENTRY, NAMES, LookupWriter, find_sorted
from sgpipe.datasets.visual_genome.spans import Span
from sgpipe.relations.aliases import PredicateMap, canonical_names, read_aliases

ALIASES = ("object_alias.txt", "relationship_alias.txt")
"""Official files of aliases, which may be absent."""


class ImageTables:
    """Spans of image_data.json to tables; keeps the id, width and height of every image (24 bytes each)."""

    def __init__(self) -> None:
        self._parts: list[NDArray[np.int64]] = []
        self._seen: set[int] = set()

    def tables(self, spans: Sequence[Span], columns: Columns) -> Batch:
        """Rows of a run of spans."""
        found: Images = columns.items
        path, index = spans[0].path, columns.index.tolist()
        again, kept, rejects = rows.image_tables(path.name, index, found.sizes, found.urls, self._seen, columns.invalid)
        self._parts.append(found.sizes[:, ~again])
        return Batch("images", path, columns.count, kept, rejects)

    def sizes(self) -> NDArray[np.int64]:
        """Ids, widths and heights `[3, I]`, sorted by id."""
        images = np.concatenate(self._parts, axis=1)
        return images[:, np.argsort(images[0])]


class Annotations:
    """Spans of the other two files to tables."""

    def __init__(self, root: Path, keys: tuple[str, str, str], sizes: NDArray[np.int64], work: Work) -> None:
        self._keys, self._work = keys, work
        self._image_ids, self._widths, self._heights = sizes
        aliases, predicates = (root / name for name in ALIASES)
        self._name_of = canonical_names(read_aliases(aliases) if aliases.is_file() else {})
        self._codes_of = rows.PredicateCodes(PredicateMap.load(predicates if predicates.is_file() else None))
        self._names: dict[str, int] = {}
        self._seen = np.zeros(len(self._image_ids), dtype=bool)

    def objects(self, lookup: LookupWriter) -> Callable[[Sequence[Span], Columns], Batch]:
        """What makes tables of spans of objects.json, and writes its objects to the lookup."""
        self._seen[:] = False

        def tables(spans: Sequence[Span], columns: Columns) -> Batch:
            found: Objects = columns.items
            items, position = self._items(spans, columns)
            objects = self._checked(found.objects, position)
            raw_names = _texts(found.objects.names, found.objects.names.values)
            keep, kept, rejects = rows.object_tables(items, objects, raw_names, found.objects.boxes, columns.invalid)
            entries = np.empty(len(keep), dtype=ENTRY)
            entries["id"] = entries["object_id"] = objects.ids[keep]
            names = objects.names.dictionary.to_pylist()
            numbers = np.array([self._names.setdefault(name, len(self._names)) for name in names], dtype=np.int32)
            entries["name"] = numbers[found.objects.names.codes[keep]]
            entries["box"] = objects.boxes[keep]
            place = np.full(len(objects.ids), -1)
            place[keep] = np.arange(len(keep))
            row, other = found.merged[place[found.merged[:, 0]] >= 0].T
            merged = entries.take(place[row])
            merged["id"] = other
            image = items.image[np.concatenate([keep, row])]
            lookup.write(image, np.concatenate([entries, merged]))
            derived = rows.geometric_relations(self._work.geometric, kept, objects.boxes[keep])
            return Batch("objects", spans[0].path, len(objects.ids) + len(columns.invalid), kept, rejects, derived)

        return tables

    def relations(self) -> Callable[[Sequence[Span], Columns], Batch]:
        """What makes tables of spans of relationships.json."""
        self._seen[:] = False
        listed = pa.array(self._names, pa.string())
        files = [name for name in NAMES if (self._work.folder / name).is_dir()]

        def tables(spans: Sequence[Span], columns: Columns) -> Batch:
            positions = find_sorted(self._image_ids, columns.images)
            if (known := positions[positions >= 0])[self._seen[known]].size:
                again = self._image_ids[known[self._seen[known]]].tolist()
                columns = read_spans(spans, "relationships", self._keys, self._work.folder, again)
            found: Relations = columns.items
            items, position = self._items(spans, columns)
            source = found.source.reshape(-1)
            is_own = source < 0
            own = self._checked(found.own, position.repeat(2)[is_own])
            entries = found.found
            ends = rows.Objects(
                np.concatenate([entries["object_id"], own.ids]),
                pa.DictionaryArray.from_arrays(
                    np.concatenate([entries["name"], len(listed) + found.own.names.codes]),
                    pa.concat_arrays([listed, own.names.dictionary]),
                ),
                np.concatenate([entries["box"], own.boxes.astype(np.float32)]),
                np.concatenate([np.zeros(len(entries), dtype=np.int64), own.codes]),
            )
            joined = np.where(is_own, len(entries) + np.cumsum(is_own), np.cumsum(~is_own)).reshape(-1, 2).T - 1
            predicates = _texts(found.predicates, found.predicates.values)
            kept, rejects = rows.relation_tables(items, found.ids, predicates, self._codes_of, joined, ends, columns.invalid)
            counts = np.roll(np.bincount(source + 1, minlength=1 + len(files)), -1).tolist()
            endpoints = dict(zip((*files, spans[0].path.name), counts, strict=True))
            return Batch("relations", spans[0].path, len(found.ids) + len(columns.invalid), kept, rejects, endpoints=endpoints)

        return tables

    def _items(self, spans: Sequence[Span], columns: Columns) -> tuple[rows.Items, NDArray[np.int64]]:
        """The items of spans' records, and the position of each one's image, which counts as met from now on."""
        positions = find_sorted(self._image_ids, columns.images)
        again = rows.repeated(positions) | self._seen[positions]
        codes = np.select([positions < 0, again], [rows.CODE["image unknown"], rows.CODE["image repeated"]], 0)
        items = rows.Items.of(spans[0].path.name, columns.index, columns.images, codes, columns.counts)
        self._seen[positions[codes == 0]] = True
        return items, positions[items.owner]

    def _checked(self, found: Described, position: NDArray[np.int64]) -> rows.Objects:
        """The objects with canonical names; `position` is of their images."""
        names = _texts(found.names, list(map(self._name_of, found.names.values)))
        return rows.Objects.of(found.ids, names, found.boxes, self._widths[position], self._heights[position])


def _texts(texts: Texts, values: list[str]) -> pa.DictionaryArray:
    """The strings, with other `values` in the place of their own."""
    return pa.DictionaryArray.from_arrays(texts.codes, pa.array(values, pa.string()))
