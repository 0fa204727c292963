"""COCO's JSON files as arrays of objects: instances, stuff with masks, panoptic segments."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from sgpipe.datasets.base import Finite, Id, Invalid, Pixels, Progress
from sgpipe.datasets.coco_masks import Mask, centroids
from sgpipe.datasets.json_stream import JsonStream
from sgpipe.datasets.records import read_item
from sgpipe.errors import DataError

SEGMENT: Final = 1 << 40
"""Added to the ids of segments, which are colours or classes and may be an instance's id."""
PANOPTIC: Final = "panoptic"
"""Begins the names of files of panoptic segments."""
_AT_ONCE: Final = 256
"""Masks whose arrays stay in the processor's cache: 2,048 at once take twice as long."""


class CocoImage(Struct):
    """An entry of `images`."""

    id: Id
    width: Pixels
    height: Pixels
    coco_url: str | None = None


class Category(Struct):
    """An entry of `categories`; only panoptic files tell things from stuff."""

    id: Id
    name: str
    isthing: int = 1


class _Annotation(Struct, gc=False):
    id: Id
    image_id: Id
    category_id: Id
    bbox: tuple[Finite, Finite, Finite, Finite]
    segmentation: Mask = None


class _Segment(Struct):
    id: Id
    category_id: Id
    bbox: tuple[Finite, Finite, Finite, Finite]


class _Panoptic(Struct):
    image_id: Id
    segments_info: list[Any]


@dataclass(frozen=True)
class CocoObjects:
    """Objects of several images `[N]`: ids, images, class names, boxes `[N, 4]` and centres `[N, 2]`, of masks where there are."""

    ids: NDArray[np.int64]
    images: NDArray[np.int64]
    names: list[str]
    boxes: NDArray[np.float64]
    centres: NDArray[np.float64]


def _lists(path: Path, kinds: Mapping[str, Any], progress: Progress) -> Iterator[tuple[str, int, Any]]:
    """Key, place and value of each element of these lists of a file, in its order; each list must be there.

    Values come as plain ones or as their list's kind.
    """
    missing = dict.fromkeys(kinds)
    with JsonStream(path, progress) as stream:
        for key in stream.members():
            if key in missing:
                del missing[key]
                for place, value in enumerate(stream.elements(kinds[key])):
                    yield key, place, value
            else:
                stream.value()
    if missing:
        raise DataError(f"{path}: no list `{next(iter(missing))}` in it; this is no annotation file of COCO, get it again")


def _image(value: Any, place: int) -> CocoImage | Invalid:
    return value if isinstance(value, CocoImage) else read_item(value, CocoImage, place, None)


def read_images(path: Path) -> Iterator[CocoImage | Invalid]:
    """The entries of `images`."""
    found = _lists(path, {"images": CocoImage}, lambda path, done: None)
    return (_image(value, place) for key, place, value in found)


def read_json(
    path: Path, stuff_alone: bool, images: list[CocoImage | Invalid], invalid: list[Invalid], progress: Progress
) -> CocoObjects:
    """The objects of a JSON file; its images are added to `images`. Of panoptic segments only stuff is taken with `stuff_alone`."""
    panoptic, categories = path.name.startswith(PANOPTIC), dict[int, Category]()
    parts: list[tuple[NDArray, ...]] = []
    pending: list[tuple[int, _Annotation]] = []

    def locate() -> None:
        centres, faulty = centroids([each.segmentation for _, each in pending])
        boxes = np.array([each.bbox for _, each in pending], np.float64).reshape(-1, 4)
        centres = np.where(np.isnan(centres), boxes[:, :2] + boxes[:, 2:] / 2, centres)
        for place, each in (pending[n] for n in np.flatnonzero(faulty)):
            invalid.append(Invalid(place, each.image_id, each.id, "segmentation: its runs do not fill its size"))
        numbers = np.array([(each.id, each.image_id, each.category_id) for _, each in pending], np.int64).reshape(-1, 3)
        parts.append((numbers[~faulty], boxes[~faulty], centres[~faulty]))
        pending.clear()

    kinds = {"images": CocoImage, "annotations": _Panoptic if panoptic else _Annotation, "categories": Category}
    for key, place, value in _lists(path, kinds, progress):
        if key == "categories":
            category = _category(path, value, place)
            categories[category.id] = category
        elif key == "images":
            images.append(_image(value, place))
        else:
            for each in _panoptic(value, place) if panoptic else [_annotation(value, place)]:
                if isinstance(each, Invalid):
                    invalid.append(each)
                else:
                    pending.append((place, each))
        if len(pending) >= _AT_ONCE:
            locate()
    locate()
    numbers, boxes, centres = (np.concatenate(each) for each in zip(*parts, strict=True))
    unknown = ~np.isin(numbers[:, 2], list(categories))
    invalid += [Invalid(-1, int(image), int(id_), f"category {number} is not listed") for id_, image, number in numbers[unknown]]
    things = [number for number, each in categories.items() if each.isthing] if panoptic and stuff_alone else []
    keep = ~unknown & ~np.isin(numbers[:, 2], things)
    names = [_name(categories[number].name) for number in numbers[keep, 2].tolist()]
    return CocoObjects(numbers[keep, 0], numbers[keep, 1], names, boxes[keep], centres[keep])


def _name(category: str) -> str:
    """A class's name; what panoptic merged bears the name of its parts."""
    return category.removesuffix("-merged")


def _annotation(value: Any, place: int) -> _Annotation | Invalid:
    if isinstance(value, _Annotation):
        return value
    owner = value.get("image_id") if isinstance(value, dict) else None
    return read_item(value, _Annotation, place, owner if type(owner) is int and 0 <= owner < SEGMENT else None)


def _panoptic(value: Any, place: int) -> Iterator[_Annotation | Invalid]:
    found = value if isinstance(value, _Panoptic) else read_item(value, _Panoptic, place, None)
    if isinstance(found, Invalid):
        yield found
        return
    for each in found.segments_info:
        segment = read_item(each, _Segment, place, found.image_id)
        if isinstance(segment, Invalid):
            yield segment
        else:
            yield _Annotation(SEGMENT + segment.id, found.image_id, segment.category_id, segment.bbox)


def read_categories(path: Path) -> list[Category]:
    """The entries of `categories`. Raises `DataError` for a damaged one."""
    found = _lists(path, {"categories": Category}, lambda path, done: None)
    return [_category(path, value, place) for _, place, value in found]


def _category(path: Path, value: Any, place: int) -> Category:
    category = value if isinstance(value, Category) else read_item(value, Category, place, None)
    if isinstance(category, Invalid):
        raise DataError(f"{path}: category {place}: {category.raw}; the file is damaged, get it again")
    return category
