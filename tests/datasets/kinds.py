"""Every built-in data set on small made-up annotations: how to write them, open them, and where their records stand."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from PIL import Image

from benchmarks._data_sets import compressed
from sgpipe.datasets.base import DataSet
from sgpipe.datasets.canonicalize import open_data_set
from sgpipe.datasets.config import Data
from tests.datasets.canonical import many

WORDS = ("on", "has", "wearing", "next to", "zzz")
NAMES = ("cat", "dog", "man", "bus")


@dataclass(frozen=True)
class Kind:
    """A data set's files by name, as JSON values; `records` gives what may be damaged of a file: a list or an object of records;
    `text` is a string in one of them; `files_beside` are images that it reads, by name and size.
    """

    name: str
    files: Callable[[int], dict[str, Any]]
    records: Callable[[Any], Any] = lambda value: value
    text: str = "cat"
    files_beside: Callable[[int], dict[str, tuple[int, int]]] = lambda count: {}

    def write(self, root: Path, files: dict[str, Any]) -> Path:
        for name, value in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(value if isinstance(value, bytes) else msgspec.json.encode(value))
        for name, size in self.files_beside(20).items():
            if not (root / name).is_file():
                Image.new("RGB", size).save(root / name)
        return root

    def open(self, root: Path) -> DataSet:
        return open_data_set(Data(self.name, str(root)))


def _visual_genome(count: int) -> dict[str, Any]:
    return dict(zip(("image_data.json", "objects.json", "relationships.json"), many(count), strict=True))


def _gqa(count: int) -> dict[str, Any]:
    draw, graphs = np.random.default_rng(0), {}
    for image in range(1, count + 1):
        objects: dict[str, Any] = {}
        for n in range(4):
            x, y, w, h = draw.integers(0, 300, 4).tolist()
            said = [{"name": WORDS[(image + n) % 5], "object": str(100 * image + (n + 1) % 4)}]
            said += [{"name": "to the left of", "object": str(100 * image + (n + 2) % 4)}] * (n < 2)
            objects[str(100 * image + n)] = {
                "name": NAMES[(image * n) % 4], "x": x, "y": y, "w": w + 1, "h": h + 1, "relations": said, "attributes": ["red"],
            }  # fmt: skip
        graphs[str(image)] = {"width": 640, "height": 480, "objects": objects}
    halves = list(graphs.items())
    return {"train_sceneGraphs.json": dict(halves[: count // 2]), "val_sceneGraphs.json": dict(halves[count // 2 :])}


def rectangle(x: int, y: int, w: int, h: int, width: int, height: int) -> list[int]:
    """Run lengths of a box down the columns of an image."""
    columns = [h, height - h] * (w - 1) + [h]
    return [x * height + y, *columns, width * height - x * height - y - sum(columns)]


def _coco_stuff(count: int) -> dict[str, Any]:
    draw = np.random.default_rng(0)
    things = [{"id": n + 1, "name": name} for n, name in enumerate(NAMES)]
    stuff = [{"id": 92 + n, "name": name} for n, name in enumerate(("sky-other", "grass"))] + [{"id": 183, "name": "other"}]
    images = [{"id": n, "width": 64, "height": 48, "coco_url": f"http://images/{n:012}.jpg"} for n in range(1, count + 1)]
    of_things: list[dict[str, Any]] = []
    of_stuff: list[dict[str, Any]] = []
    for image in images:
        for n in range(int(draw.integers(2, 7))):
            x, y, w, h = (int(draw.integers(low, high)) for low, high in ((0, 30), (0, 20), (2, 30), (2, 25)))
            box = {"id": 10 * image["id"] + n, "image_id": image["id"], "bbox": [x, y, w, h], "iscrowd": 0}
            if n % 2:
                counts = rectangle(x, y, w, h, 64, 48)
                mask = {"size": [48, 64], "counts": compressed(counts) if n % 4 == 1 else counts}
                of_stuff.append({**box, "category_id": (92, 93, 183)[n % 3], "segmentation": mask})
            else:
                corners = [x, y, x + w, y, x + w, y + h, x, y + h]
                of_things.append({**box, "category_id": 1 + n % 4, "segmentation": [corners]})
    return {
        "annotations/instances_train2017.json": {"images": images, "annotations": of_things, "categories": things},
        "annotations/stuff_train2017.json": {"images": images, "categories": stuff, "annotations": of_stuff},
    }


def _folder(count: int) -> dict[str, Any]:
    draw, records = np.random.default_rng(0), []
    for image in range(1, count + 1):
        objects = []
        for n in range(3):
            x, y, w, h = draw.integers(0, 30, 4).tolist()
            objects.append({"name": NAMES[(image + n) % 4], "box": [x, y, w + 1, h + 1], "attributes": ["red"]})
        said = [[n, WORDS[(image + n) % 5], (n + 1) % 3] for n in range(3)]
        records.append({"image": f"{image:03}.png", "objects": objects, "relations": said})
    return {"graphs.json": records}


KINDS = {
    kind.name: kind
    for kind in (
        Kind("visual_genome", _visual_genome),
        Kind("gqa", _gqa),
        Kind("coco_stuff", _coco_stuff, lambda value: value["annotations"], "http://images/000000000001.jpg"),
        Kind("folder", _folder, files_beside=lambda count: {f"{n:03}.png": (64, 48) for n in range(1, count + 1)}),
    )
}
