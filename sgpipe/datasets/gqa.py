"""GQA's scene graphs (Hudson and Manning 2019): Visual Genome's images with names, boxes, attributes and relations cleaned.

`to the left of` and `to the right of` were added to the graphs by machine, from the boxes, for every pair that lies side by side:
88 % of all relations. They are kept as `geometric`, and `data.gqa.left_right` says what share of them.
"""

from collections.abc import Generator, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from msgspec import Struct, ValidationError

from sgpipe.datasets.base import ID_BITS, Batch, Finite, Invalid, Pixels, Progress, Work, convert_whole
from sgpipe.datasets.config import Gqa as Options
from sgpipe.datasets.image_files import StoredImages, cut_off
from sgpipe.datasets.json_stream import JsonStream
from sgpipe.datasets.records import ObjectRecord, Record, RelationRecord, batches, read_item
from sgpipe.errors import DataError
from sgpipe.runs.hashing import fraction

FILES: Final = ("train_sceneGraphs.json", "val_sceneGraphs.json")
FROM_BOXES: Final = ("to the left of", "to the right of")
FOREIGN: Final = 1 << 40
"""Added to the number of an image that is not Visual Genome's, whose name begins with `n`."""
UNKNOWN: Final = (1 << ID_BITS) - 1
"""The object of a relation that names none by a number; no object has this id."""


class _Size(Struct):
    width: Pixels
    height: Pixels


class _Graph(_Size):
    objects: dict[Any, Any]


class _Object(Struct):
    name: str
    x: Finite
    y: Finite
    w: Finite
    h: Finite
    relations: list[Any] = []
    attributes: list[str] = []


class _Relation(Struct, gc=False):
    name: str
    object: str


class _SoundObject(_Object):
    relations: list[_Relation] = []


class _SoundGraph(_Size):
    """A graph in which nothing is wrong, as nearly all are: converted at once."""

    objects: dict[str, _SoundObject]


def image_id_of(name: Any) -> int | None:
    """The number of an image by GQA's name for it, digits with perhaps an `n` before them; None for any other."""
    digits = name.removeprefix("n") if isinstance(name, str) else ""
    if not (digits.isascii() and digits.isdecimal() and len(digits) < 12):
        return None
    return int(digits) + FOREIGN * name.startswith("n")


class Gqa(StoredImages):
    """A folder with `train_sceneGraphs.json` or `val_sceneGraphs.json` or both, and the images in `images/` or `images.zip`."""

    folders = ("images", "VG_100K", "VG_100K_2")
    archives = ("images.zip", "images2.zip")

    def __init__(self, root: Path, options: Options = Options()) -> None:
        super().__init__(root)
        self._options = options
        self.sizes_file = (self._files() or [root / FILES[0]])[0]

    def _files(self) -> list[Path]:
        return [self.root / name for name in FILES if (self.root / name).is_file()]

    def stem(self, image_id: int) -> str:
        """GQA's name of an image."""
        return f"n{image_id - FOREIGN}" if image_id >= FOREIGN else str(image_id)

    def image_id(self, stem: str) -> int | None:
        """The number of an image by its name."""
        return image_id_of(stem)

    def sizes(self) -> dict[int, tuple[int, int]]:
        """Width and height of every image whose graph states them; of a repeated one the first counts."""
        found: dict[int, tuple[int, int]] = {}
        for path in self._files():
            for name, value in _graphs(path):
                size, image_id = read_item(value, _Size, 0, None), image_id_of(name)
                if image_id is not None and isinstance(size, _Size):
                    found.setdefault(image_id, (size.width, size.height))
        return found

    def remedy(self, triples: Path | None = None) -> str:
        """Where to get what is missing."""
        return f"unzip sceneGraphs.zip and images.zip of GQA's download page (cs.stanford.edu/people/dorarad/gqa) into {self.root}"

    def annotations(self) -> list[Path]:
        """Both files, one of which may be absent."""
        return [self.root / name for name in FILES]

    def damage(self) -> list[str]:
        """Whether there is a file, and each begins and ends as a JSON object."""
        if not (files := self._files()):
            return [f"{self.root}: neither {FILES[0]} nor {FILES[1]}"]
        return cut_off(files, b"{", b"}")

    def about(self) -> dict[str, Any]:
        """Which files there are, and the share of left and right."""
        return {"files": [path.name for path in self._files()], "left_right": self._options.left_right}

    def relations(self, work: Work) -> Generator[Batch, None, None]:
        """The train graphs, then the val graphs."""
        if not self._files():
            raise DataError(f"{self.damage()[0]}; {self.remedy()}")
        seen = set[int]()
        for path in self._files():
            graphs = _graphs(path, work.progress)
            yield from batches(path, (self._record(*each) for each in enumerate(graphs)), work, seen)

    def _record(self, number: int, entry: tuple[Any, Any]) -> Record | Invalid:
        name, value = entry
        image_id = image_id_of(name)
        if image_id is None:
            return Invalid(number, None, None, f"image {name!r}: a name of digits is needed, with perhaps an n before them")
        graph = _graph(value, number, image_id)
        if isinstance(graph, Invalid):
            return graph
        objects, said = list[ObjectRecord | Invalid](), list[tuple[int, int | None, _Relation | Invalid]]()
        for key, raw in graph.objects.items():
            object_id = _number(key)
            found = raw if isinstance(raw, _Object) else read_item(raw, _Object, number, image_id)
            if object_id is None or isinstance(found, Invalid):
                why = found if isinstance(found, Invalid) else Invalid(number, image_id, None, f"object {key!r}: no number")
                objects.append(why)
                continue
            box = (found.x, found.y, found.w, found.h)
            objects.append(ObjectRecord(object_id, found.name, box, tuple(found.attributes)))
            for each in found.relations:
                sound = each if isinstance(each, _Relation) else read_item(each, _Relation, number, image_id, len(said))
                said.append((object_id, _number(sound.object) if isinstance(sound, _Relation) else None, sound))
        kept = iter(self._kept(image_id, [(s, o) for s, o, each in said if isinstance(each, _Relation)]))
        relations = [
            each if isinstance(each, Invalid) else _relation(n, s, o, each, next(kept)) for n, (s, o, each) in enumerate(said)
        ]
        return Record(image_id, graph.width, graph.height, tuple(objects), tuple(relations))

    def _kept(self, image_id: int, pairs: list[tuple[int, int | None]]) -> list[bool]:
        """Whether each pair of an image keeps its left and right; (s, o) and (o, s) do alike."""
        share = self._options.left_right
        if share in (0.0, 1.0) or not pairs:
            return [share == 1.0] * len(pairs)
        ends = np.array([(s, -1 if o is None else o) for s, o in pairs], dtype=np.int64)
        images = np.full(len(pairs), image_id)
        return (fraction(self._options.seed, "left_right", images, ends.min(axis=1), ends.max(axis=1)) < share).tolist()


def _relation(number: int, subject: int, object_: int | None, said: _Relation, keep: bool) -> RelationRecord:
    from_boxes = said.name in FROM_BOXES
    source, reason = "geometric" if from_boxes else "annotated", "share of left and right" if from_boxes and not keep else None
    return RelationRecord(number, subject, said.name, UNKNOWN if object_ is None else object_, source=source, reason=reason)


@lru_cache(1 << 12)
def _number(text: Any) -> int | None:
    """An object's number; None where there is none that fits."""
    digits = isinstance(text, str) and text.isascii() and text.isdecimal() and len(text) <= 13
    return int(text) if digits and int(text) < UNKNOWN else None


def _graph(value: Any, number: int, image_id: int) -> _SoundGraph | _Graph | Invalid:
    try:
        return convert_whole(value, _SoundGraph)
    except ValidationError:
        return read_item(value, _Graph, number, image_id)


def _graphs(path: Path, progress: Progress = lambda path, done: None) -> Iterator[tuple[Any, Any]]:
    """Name and scene graph of every image, as they stand in the file."""
    with JsonStream(path, progress) as stream:
        for name in stream.members():
            yield name, stream.value()
