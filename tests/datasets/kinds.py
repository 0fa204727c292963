"""Every built-in data set on small made-up annotations: how to write them, open them, and where their records stand."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from sgpipe.datasets.base import DataSet
from sgpipe.datasets.canonicalize import open_data_set
from sgpipe.datasets.config import Data
from tests.datasets.canonical import many

WORDS = ("on", "has", "wearing", "next to", "zzz")
NAMES = ("cat", "dog", "man", "bus")


@dataclass(frozen=True)
class Kind:
    """A data set's files by name, as JSON values; `records` gives what may be damaged of a file: a list or an object of records."""

    name: str
    files: Callable[[int], dict[str, Any]]
    records: Callable[[Any], Any] = lambda value: value

    def write(self, root: Path, files: dict[str, Any]) -> Path:
        for name, value in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(value if isinstance(value, bytes) else msgspec.json.encode(value))
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


KINDS = {kind.name: kind for kind in (Kind("visual_genome", _visual_genome), Kind("gqa", _gqa))}
