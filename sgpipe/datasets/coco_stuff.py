"""COCO-Stuff (Caesar et al. 2018) as scene-graph work reads it: instances and stuff with relations from geometry.

As in sg2im (Johnson et al. 2018) and SGDiff: objects whose box is larger than 2 % of the image, without the class `other`; images
of 3 to 8 of them; for every object a partner and which of the two is the subject, there at random, here by a hash; `inside` and
`surrounding` from the boxes, else a direction from the masks' centroids. There masks are of 16 × 16 pixels, here they are exact.
"""

from collections import defaultdict
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from sgpipe.datasets.base import Batch, Invalid, Work
from sgpipe.datasets.coco_files import CocoImage, CocoObjects, read_categories, read_images
from sgpipe.datasets.coco_maps import SegmentMaps
from sgpipe.datasets.coco_split import CocoFiles, CocoSplit, read_split
from sgpipe.datasets.config import CocoStuff as Options
from sgpipe.datasets.image_files import StoredImages, cut_off
from sgpipe.datasets.records import IMAGE_UNKNOWN, ObjectRecord, Record, RelationRecord, batches
from sgpipe.errors import DataError
from sgpipe.relations.boxes import geometric_relation, sector
from sgpipe.relations.predicates import PREDICATES
from sgpipe.runs.hashing import hashed

SPLITS: Final = ("train2017", "val2017")
INSIDE: Final = {"in": "inside"}
"""The box rule's class by its name in sg2im's list."""


class CocoStuff(StoredImages):
    """A folder with `instances_<split>.json` beside the split's stuff, or `panoptic_<split>.json` alone, in `annotations/` or not.

    Stuff is `stuff_<split>.json`, else pixel maps with `labels.txt`, else `panoptic_<split>.json`. Splits are train2017 and
    val2017, and so are the folders and archives of images.
    """

    folders = (*SPLITS, *(f"images/{split}" for split in SPLITS))
    archives = tuple(f"{split}.zip" for split in SPLITS)

    def __init__(self, root: Path, options: Options = Options()) -> None:
        super().__init__(root)
        self._options = options
        self._splits = [files for split in SPLITS if (files := self._files(split)) is not None]
        self.sizes_file = self._splits[0].json[0] if self._splits else root / f"instances_{SPLITS[0]}.json"

    def _first(self, *names: str) -> Path | None:
        """A file, in the folder or in `annotations/`."""
        paths = (folder / name for name in names for folder in (self.root, self.root / "annotations"))
        return next((path for path in paths if path.is_file()), None)

    def file(self, kind: str, split: str) -> Path | None:
        """An annotation file of a split."""
        return self._first(f"{kind}_{split}.json")

    def _maps(self, folders: Sequence[str], archives: Sequence[str]) -> SegmentMaps | None:
        """PNGs in the first of the folders or archives that is there, in `annotations/` or not."""
        places = [[*names, *(f"annotations/{name}" for name in names)] for names in (folders, archives)]
        return SegmentMaps(self.root, *places) or None

    def _files(self, split: str) -> CocoFiles | None:
        """What there is of a split; None where things or stuff are missing."""
        instances, stuff, panoptic = (self.file(kind, split) for kind in ("instances", "stuff", "panoptic"))
        if instances and stuff:
            return CocoFiles(instances, stuff)
        if instances and (labels := self._first("labels.txt", "cocostuff_labels.txt")):
            if maps := self._maps([f"stuffthingmaps/{split}", f"annotations/{split}"], ["stuffthingmaps_trainval2017.zip"]):
                return CocoFiles(instances, None, None, maps, 1, labels)
            if maps := self._maps([f"stuff_{split}_pixelmaps"], [f"stuff_{split}_pixelmaps.zip"]):
                return CocoFiles(instances, None, None, maps, 0, labels)
        if panoptic is None:
            return None
        maps = self._maps([f"panoptic_{split}"], [f"panoptic_{split}.zip"]) if self._options.masks else None
        return CocoFiles(instances, panoptic, maps)

    def stem(self, image_id: int) -> str:
        """Twelve digits."""
        return f"{image_id:012}"

    def sizes(self) -> dict[int, tuple[int, int]]:
        """Width and height of every image; of a repeated one the first counts."""
        found: dict[int, tuple[int, int]] = {}
        for files in self._splits:
            for image in read_images(files.json[0]):
                if isinstance(image, CocoImage):
                    found.setdefault(image.id, (image.width, image.height))
        return found

    def remedy(self, triples: Path | None = None) -> str:
        """Where to get what is missing."""
        archives = "annotations_trainval2017.zip, stuff_annotations_trainval2017.zip, train2017.zip and val2017.zip"
        return f"unzip {archives} of cocodataset.org into {self.root}"

    def annotations(self) -> list[Path]:
        """The JSON files of both splits."""
        return [path for files in self._splits for path in files.json] or [self.sizes_file]

    def damage(self) -> list[str]:
        """Whether there is a split, and each file begins and ends as a JSON object."""
        if not self._splits:
            return [
                f"{self.root}: neither {SPLITS[0]} nor {SPLITS[1]} has instances_*.json with stuff_*.json or with pixel maps and "
                "labels.txt, or panoptic_*.json"
            ]
        return cut_off(self.annotations(), b"{", b"}")

    def about(self) -> dict[str, Any]:
        """The files that were read, and the folders or archives of segments' pixels."""
        maps = [each.place for files in self._splits for each in (files.stuff_maps, files.panoptic_maps) if each]
        paths = [*(path for path in self.annotations() if path.is_file()), *maps]
        return {"files": [path.relative_to(self.root).as_posix() for path in paths]}

    def relations(self, work: Work) -> Generator[Batch, None, None]:
        """Train images, then val images."""
        if not self._splits:
            raise DataError(f"{self.damage()[0]}; {self.remedy()}")
        seen = set[int]()
        for files in self._splits:
            found = read_split(files, work.workers, work.progress)
            for path, invalid in found.invalid.items():
                unread = Record(0, 1, 1, tuple(invalid), reason=IMAGE_UNKNOWN)
                yield from batches(path, [unread], work, seen)
            yield from batches(files.json[0], self._records(found), work, seen)

    def _records(self, found: CocoSplit) -> Iterator[Record | Invalid]:
        """Images in the order of their file, then those that are named by objects alone."""
        options, objects = self._options, found.objects
        areas = {each.id: each.width * each.height for each in found.images if isinstance(each, CocoImage)}
        area = np.array([areas.get(image, 1) for image in objects.images.tolist()], np.float64)
        large = objects.boxes[:, 2] * objects.boxes[:, 3] > options.min_area * area
        wanted = np.array([options.other or name != "other" for name in objects.names], np.bool_)
        chosen = large & wanted
        order = np.argsort(objects.images, kind="stable")
        listed, owner = np.unique(objects.images, return_inverse=True)
        many = np.bincount(owner, chosen, len(listed)).astype(np.int64)
        fits = (many >= options.min_objects) & (many <= options.max_objects)
        mine = dict(zip(listed.tolist(), np.split(order, np.cumsum(np.bincount(owner))[:-1]), strict=True)) if len(listed) else {}
        told = self._relations(objects, order[(chosen & fits[owner])[order]])
        counts = dict(zip(listed.tolist(), many.tolist(), strict=True))
        for image in found.images:
            if isinstance(image, Invalid):
                yield image
                continue
            few, too_many = counts.get(image.id, 0) < options.min_objects, counts.get(image.id, 0) > options.max_objects
            fault = "too few objects" if few else "too many objects" if too_many else None
            rows = mine.pop(image.id, np.zeros(0, np.int64))
            kept = tuple(_objects(objects, rows, wanted, large))
            yield Record(image.id, image.width, image.height, kept, tuple(told.pop(image.id, ())), image.coco_url, fault)
        for image_id, rows in mine.items():
            yield Record(image_id, 1, 1, tuple(_objects(objects, rows, wanted, large)), reason=IMAGE_UNKNOWN)

    def _relations(self, objects: CocoObjects, rows: NDArray[np.int64]) -> dict[int, list[RelationRecord]]:
        """One relation per object of `rows`, which are in the order of images: the partner and the direction by hash."""
        images, ids = objects.images[rows], objects.ids[rows]
        _, first, size = np.unique(images, return_index=True, return_counts=True)
        first, size = np.repeat(first, size), np.repeat(size, size)
        one, hashes = np.arange(len(rows)), hashed(self._options.seed, "partner", images, ids)
        step = 1 + (hashes % np.maximum(size - 1, 1).astype(np.uint64)).astype(np.int64)
        other = first + (one - first + step) % np.maximum(size, 1)
        turned = (hashes >> np.uint64(63)).astype(bool)
        s, o = rows[np.where(turned, other, one)], rows[np.where(turned, one, other)]
        classes, exchange = geometric_relation(objects.boxes[s], objects.boxes[o])
        if self._options.masks:
            points = [np.pad(objects.centres[side], ((0, 0), (0, 2))) for side in (s, o)]
            classes = np.where(classes == "in", classes, sector(*points))
        if "surrounding" in PREDICATES:
            classes, exchange = np.where(exchange, "surrounding", classes), np.zeros_like(exchange)
        s, o = np.where(exchange, o, s), np.where(exchange, s, o)
        told: dict[int, list[RelationRecord]] = defaultdict(list)
        columns = zip(images.tolist(), objects.ids[s].tolist(), classes.tolist(), objects.ids[o].tolist(), strict=True)
        for alone, (image, subject, name, object_) in zip((size < 2).tolist(), columns, strict=True):
            if not alone:
                told[image].append(RelationRecord(len(told[image]), subject, INSIDE.get(name, name), object_, source="geometric"))
        return told


def _objects(objects: CocoObjects, rows: NDArray[np.int64], wanted: NDArray, large: NDArray) -> Iterator[ObjectRecord]:
    columns = (each[rows].tolist() for each in (objects.ids, objects.boxes, wanted, large))
    for n, (object_id, box, of_class, of_size) in zip(rows.tolist(), zip(*columns, strict=True), strict=True):
        reason = "class left out" if not of_class else None if of_size else "object too small"
        yield ObjectRecord(object_id, objects.names[n], tuple(box), reason=reason)


def vocabulary(root: Path) -> dict[str, list[str]]:
    """sg2im's and SGDiff's numbering in the form that `graph_encoder` reads: a class's row is its number in COCO, 184 in all with
    gaps, and 7 predicates. Raises `DataError` where the categories of instances or stuff are not there.
    """
    data_set, rows = CocoStuff(root), {0: "__image__"}
    for kind in ("instances", "stuff"):
        path = next(filter(None, (data_set.file(kind, split) for split in SPLITS)), None)
        if path is None:
            raise DataError(
                f"{root}: no {kind}_{SPLITS[0]}.json or {kind}_{SPLITS[1]}.json, which name the classes; {data_set.remedy()}"
            )
        rows |= {each.id: each.name for each in read_categories(path)}
    predicates = ["__in_image__", "left of", "right of", "above", "below", "inside", "surrounding"]
    return {"object_idx_to_name": [rows.get(n, "NONE") for n in range(max(rows) + 1)], "pred_idx_to_name": predicates}
