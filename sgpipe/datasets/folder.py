"""A folder of one's own images with their graphs in one file: `graphs.json`, `graphs.csv`, or what another tool wrote.

Images are named by their path in the folder, and their sizes are read from the files. An object without a box stands for the whole
image.
"""

import hashlib
import io
import zlib
from collections.abc import Generator, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from PIL import Image, ImageOps

from sgpipe.datasets.base import ID_BITS, Batch, Invalid, Work
from sgpipe.datasets.config import Folder as Options
from sgpipe.datasets.graph_files import READERS, ImageGraph, Thing
from sgpipe.datasets.image_files import SUFFIXES
from sgpipe.datasets.records import ObjectRecord, Record, RelationRecord, batches
from sgpipe.errors import DataError

ENDINGS: Final = (*SUFFIXES, ".jpeg", ".webp")


def image_id_of(name: str) -> int:
    """A number for an image by the name of its file, so that it keeps its split whatever else is in the folder."""
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "replace")).digest()[:6]) >> 48 - ID_BITS


class Folder:
    """Images and one file of graphs, whose name says its form."""

    def __init__(self, root: Path, options: Options = Options()) -> None:
        self.root = root
        self._options = options
        found = [name for name in READERS if (root / name).is_file()]
        self.sizes_file = root / (found[0] if found else "graphs.json")
        self._several = found[1:]

    def remedy(self, triples: Path | None = None) -> str:
        """What to do where something is missing."""
        return f"put the images and {self.sizes_file.name} in {self.root}; docs/own_images.md shows the form"

    def annotations(self) -> list[Path]:
        """The file of graphs."""
        return [self.sizes_file]

    def damage(self) -> list[str]:
        """Whether there is one file of graphs."""
        if self._several:
            names = ", ".join([self.sizes_file.name, *self._several])
            return [f"{self.root}: {names}; keep one file of graphs"]
        return [] if self.sizes_file.is_file() else [f"{self.root}: no file of graphs; valid: {', '.join(READERS)}"]

    def about(self) -> dict[str, Any]:
        """The file's name. Raises `DataError` where there is none, or several."""
        if damage := self.damage():
            raise DataError(f"{damage[0]}; {self.remedy()}")
        return {"file": self.sizes_file.name}

    def graphs(self) -> Iterator[ImageGraph | Invalid]:
        """The graphs as they stand in the file."""
        self.about()
        return READERS[self.sizes_file.name](self.sizes_file, self._options)

    @cached_property
    def names(self) -> dict[int, str]:
        """The file's name of every image that has a graph, by id."""
        return {image_id_of(each.image): each.image for each in self.graphs() if isinstance(each, ImageGraph)}

    def path(self, name: str) -> Path:
        """Where an image is: in the folder or in `images/`."""
        return next((path for path in (self.root / name, self.root / "images" / name) if path.is_file()), self.root / name)

    def size(self, name: str) -> tuple[int, int]:
        """Width and height of an image as it is seen, in pixels. Raises `DataError` saying why it cannot be had."""
        path = self.path(name)
        if not path.is_file():
            raise DataError(f"{name}: no such image in {self.root} or in its images/")
        try:
            with Image.open(path) as image:
                turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
                return image.size[::-1] if turned else image.size
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise DataError(f"{name}: the image cannot be read: {' '.join(str(error).split())}") from None

    def sizes(self) -> dict[int, tuple[int, int]]:
        """Sizes of the images that are there."""
        found = {}
        for image_id, name in self.names.items():
            try:
                found[image_id] = self.size(name)
            except DataError:  # `relations` rejects it
                continue
        return found

    def files(self) -> dict[int, str]:
        """The images that have a graph and are there, with a checksum."""
        there = {image_id: self.path(name) for image_id, name in self.names.items()}
        return {n: f"{path.name} {zlib.crc32(path.read_bytes())}" for n, path in there.items() if path.is_file()}

    def read(self, image_id: int) -> tuple[bytes, str]:
        """An encoded image, and its file's name."""
        path = self.path(self.names[image_id]) if image_id in self.names else self.root / str(image_id)
        if not path.is_file():
            raise DataError(f"{path}: no such image; {self.remedy()}")
        return path.read_bytes(), str(path)

    def relations(self, work: Work) -> Generator[Batch, None, None]:
        """The graphs in the order of their file."""
        return batches(self.sizes_file, map(self._record, self.graphs()), work)

    def _record(self, graph: ImageGraph | Invalid) -> Record | Invalid:
        if isinstance(graph, Invalid):
            return graph
        image_id = image_id_of(graph.image)
        try:
            width, height = self.size(graph.image)
        except DataError as error:
            return Invalid(graph.number, image_id, None, str(error))
        objects = tuple(
            ObjectRecord(n, each.name, each.box or (0.0, 0.0, float(width), float(height)), tuple(each.attributes))
            if isinstance(each, Thing)
            else each
            for n, each in enumerate(graph.objects)
        )
        relations = tuple(
            each if isinstance(each, Invalid) else _relation(n, each, len(objects)) for n, each in enumerate(graph.relations)
        )
        return Record(image_id, width, height, objects, relations, graph.image)


def _relation(number: int, triple: tuple[int, str, int], objects: int) -> RelationRecord:
    """An end that is no object of the graph becomes one that no graph has."""
    subject, predicate, object_ = triple
    ends = [end if 0 <= end < objects else (1 << ID_BITS) - 1 for end in (subject, object_)]
    return RelationRecord(number, ends[0], predicate, ends[1])


def unread_images(folder: Folder) -> list[str]:
    """What a look at the images themselves shows: files that cannot be decoded, and files without a graph."""
    sound, named = folder.sizes(), {folder.path(name).resolve(): image_id for image_id, name in folder.names.items()}
    problems = []
    for path in sorted(path for path in folder.root.rglob("*") if path.suffix.lower() in ENDINGS):
        if path.resolve() not in named:
            problems.append(f"{path}: an image without a graph; name it in {folder.sizes_file.name}, or take it away")
            continue
        if named[path.resolve()] not in sound:  # `relations` rejects it
            continue
        try:
            with Image.open(io.BytesIO(path.read_bytes())) as image:
                ImageOps.exif_transpose(image).convert("RGB")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            problems.append(f"{path}: the image cannot be decoded: {' '.join(str(error).split())}")
    return problems
