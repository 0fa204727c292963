"""One split of COCO-Stuff: the objects of its JSON files, of its pixel maps, and the masks of its panoptic PNGs."""

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sgpipe.datasets.base import Invalid, Progress
from sgpipe.datasets.coco_files import PANOPTIC, SEGMENT, CocoImage, CocoObjects, read_json
from sgpipe.datasets.coco_maps import SegmentMaps
from sgpipe.datasets.visual_genome.lookup import find_sorted
from sgpipe.errors import DataError

FIRST_STUFF: Final = 92
_UNLABELLED: Final = 255


@dataclass(frozen=True)
class CocoFiles:
    """The files of one split. Things are in `instances`; stuff in the JSON `stuff`, which may be panoptic, then with masks in
    `panoptic_maps`, or in the pixel maps `stuff_maps`, whose value 0 is the class of number `lowest`; `labels` names their classes.
    """

    instances: Path | None
    stuff: Path | None
    panoptic_maps: SegmentMaps | None = None
    stuff_maps: SegmentMaps | None = None
    lowest: int = 0
    labels: Path = Path("labels.txt")

    @property
    def json(self) -> list[Path]:
        """The JSON files, that which lists the images first."""
        return [path for path in (self.instances, self.stuff) if path is not None]


@dataclass
class CocoSplit:
    """What was read of one split; `invalid` by the file or folder that it is in."""

    images: list[CocoImage | Invalid]
    objects: CocoObjects
    invalid: dict[Path, list[Invalid]]


def read_split(files: CocoFiles, workers: int, progress: Progress) -> CocoSplit:
    """The images of the first file, and the objects of all."""
    images: list[CocoImage | Invalid] = []
    invalid: dict[Path, list[Invalid]] = defaultdict(list)
    found = []
    for path in files.json:
        listed: list[CocoImage | Invalid] = []
        objects = read_json(path, files.instances is not None, listed, invalid[path], progress)
        if path.name.startswith(PANOPTIC) and files.panoptic_maps:
            objects = _with_masks(objects, files.panoptic_maps, _sizes(listed), invalid, workers)
        found.append(objects)
        images = listed if path == files.json[0] else images
    if files.stuff_maps:
        found.append(_of_maps(files, files.stuff_maps, _sizes(images), invalid, workers))
    ids, owners, boxes, centres = (
        np.concatenate([getattr(each, name) for each in found]) for name in ("ids", "images", "boxes", "centres")
    )
    return CocoSplit(images, CocoObjects(ids, owners, [name for each in found for name in each.names], boxes, centres), invalid)


def _sizes(images: list[CocoImage | Invalid]) -> dict[int, tuple[int, int]]:
    """Width and height by id; of a repeated image the first counts."""
    return {each.id: (each.width, each.height) for each in reversed(images) if isinstance(each, CocoImage)}


def _with_masks(
    objects: CocoObjects, maps: SegmentMaps, sizes: Mapping[int, tuple[int, int]], invalid: dict[Path, list[Invalid]], workers: int
) -> CocoObjects:
    """Panoptic segments with the centres of their masks; one whose mask is not there is invalid."""
    listed, owner = np.unique(objects.images, return_inverse=True)
    order, bounds = np.argsort(owner, kind="stable"), np.cumsum(np.bincount(owner, minlength=len(listed)))[:-1]
    known = [(number, *sizes[number]) for number in listed.tolist() if number in sizes]
    found, centres, keep = maps.of(known, workers), objects.centres.copy(), np.ones(len(owner), np.bool_)
    for image, rows in zip(listed.tolist(), np.split(order, bounds) if len(listed) else [], strict=True):
        if image not in sizes:  # an image without an entry is rejected with all its objects
            continue
        segments = next(found)
        labels = np.zeros(0, np.int64) if isinstance(segments, str) else segments.labels
        at = find_sorted(labels, objects.ids[rows] - SEGMENT)
        keep[rows[at < 0]] = False
        for id_ in objects.ids[rows[at < 0]].tolist():
            why = segments if isinstance(segments, str) else f"{maps.place}: no pixel of {maps.stem(image)}.png has its colour"
            invalid[maps.place].append(Invalid(-1, image, id_, why))
        if not isinstance(segments, str):
            centres[rows[at >= 0]] = segments.centres[at[at >= 0]]
    names = [name for name, kept in zip(objects.names, keep.tolist(), strict=True) if kept]
    return CocoObjects(objects.ids[keep], objects.images[keep], names, objects.boxes[keep], centres[keep])


def _of_maps(
    files: CocoFiles, maps: SegmentMaps, sizes: Mapping[int, tuple[int, int]], invalid: dict[Path, list[Invalid]], workers: int
) -> CocoObjects:
    """Stuff from pixel maps, a segment for each class of an image; an image without a map has an invalid object instead."""
    names = read_labels(files.labels)
    parts: list[tuple[NDArray, ...]] = []
    for image, segments in zip(sizes, maps.of(((image, *size) for image, size in sizes.items()), workers), strict=True):
        if isinstance(segments, str):
            invalid[maps.place].append(Invalid(-1, image, None, segments))
            continue
        number = segments.labels + files.lowest
        stuff = (number >= FIRST_STUFF) & (segments.labels != _UNLABELLED)
        for unknown in sorted(set(number[stuff].tolist()) - names.keys()):
            invalid[maps.place].append(Invalid(-1, image, SEGMENT + unknown, f"class {unknown} is not in {files.labels.name}"))
        stuff &= np.isin(number, list(names))
        parts.append((number[stuff], np.full(stuff.sum(), image), segments.boxes[stuff], segments.centres[stuff]))
    if not parts:
        return CocoObjects(np.zeros(0, np.int64), np.zeros(0, np.int64), [], np.zeros((0, 4)), np.zeros((0, 2)))
    numbers, owners, boxes, centres = (np.concatenate(each) for each in zip(*parts, strict=True))
    return CocoObjects(SEGMENT + numbers, owners, [names[number] for number in numbers.tolist()], boxes, centres)


_LABEL = re.compile(r"(\d+)\s*:\s*(\S.*)")


def read_labels(path: Path) -> dict[int, str]:
    """Names of classes by number from COCO-Stuff's `labels.txt`, lines of `92: banner`; `other` is 183 if it is not there."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError:
        raise DataError(f"{path}: no UTF-8 text; get COCO-Stuff's labels.txt again") from None
    found = [_LABEL.fullmatch(line.strip()) for line in lines if line.strip()]
    if not found or None in found:
        raise DataError(
            f"{path}: lines of a number, a colon and a name are needed (`92: banner`); get COCO-Stuff's labels.txt again"
        )
    return {183: "other"} | {int(each[1]): each[2].strip() for each in found if each is not None}
