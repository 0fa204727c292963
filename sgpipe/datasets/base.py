"""What a data set is: records of images, objects and relations that become tables, and files of images by id.

Some are built in (`KINDS`); other packages bring theirs by an entry point of the group `sgpipe.datasets`, a function from `Data`
to a `DataSet`. Annotations and images are two protocols, so that a stage which shows images depends on no reader of annotations.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Protocol, TypeVar

import msgspec
from msgspec import Meta, Raw

from sgpipe.datasets.config import Data, Geometric
from sgpipe.errors import ParamsError

if TYPE_CHECKING:  # processes that decode JSON import this module, and have no use for tables
    import pyarrow as pa

PLUGINS: Final = "sgpipe.datasets"
"""Entry point group of data sets that other packages bring."""
VISUAL_GENOME: Final = "visual_genome"
KINDS: Final = (VISUAL_GENOME, "coco_stuff", "gqa", "folder")
"""The kinds that are built in."""
ID_BITS: Final = 44
Id = Annotated[int, Meta(ge=0, lt=1 << ID_BITS)]
"""Ids are non-negative and below 2^44, so that an id and a position within a batch fit one int64 key."""
Pixels = Annotated[int, Meta(ge=1, lt=1 << 31)]
Finite = Annotated[float, Meta(ge=-sys.float_info.max, le=sys.float_info.max)]
MISSING: Final = -1
Progress = Callable[[Path, int], None]
"""Called with the file and the number of its bytes that are done."""
T = TypeVar("T")


@dataclass(frozen=True)
class Invalid:
    """A record, or an item of one, whose values have a wrong type, are missing or lie out of range; `record` is its index."""

    record: int
    image_id: int | None
    item_id: int | None
    raw: str


@dataclass(frozen=True)
class Batch:
    """What became of some records of one kind in `file`: `read` items = `kept` rows + `rejects` rows.

    `kept` has the schema of the kind's table, `images` without its split; `geometric` are relations derived from kept objects,
    `attributes` those of kept objects. `endpoints` counts subjects and objects of relations by the file that describes them, where
    there are several.
    """

    kind: Literal["images", "objects", "relations"]
    file: Path
    read: int
    kept: pa.Table
    rejects: pa.Table
    geometric: pa.Table | None = None
    attributes: pa.Table | None = None
    endpoints: Mapping[str, int] | None = None


@dataclass(frozen=True)
class Work:
    """Given to a data set that is asked for its relations: a folder for temporary files, and how to go about it."""

    folder: Path
    geometric: Geometric
    workers: int = 1
    progress: Progress = lambda path, done: None


class ImageFiles(Protocol):
    """Images by id, as encoded files, and the sizes that boxes refer to."""

    root: Path
    sizes_file: Path
    """The file that states the sizes, for messages."""

    def sizes(self) -> Mapping[int, tuple[int, int]]:
        """Width and height in pixels of every annotated image. Raises `DataError` where the file cannot be read."""

    def files(self) -> Mapping[int, str]:
        """The images that are there, each with a text that changes with its content. Raises `DataError` for damaged archives."""

    def read(self, image_id: int) -> tuple[bytes, str]:
        """An encoded image, and its file's name. Raises `DataError` saying how to get one that is missing."""


class DataSet(ImageFiles, Protocol):
    """A folder of annotated images."""

    def remedy(self, triples: Path | None = None) -> str:
        """What to do where the folder is not whole, or where images that the table `triples` shows are missing."""

    def annotations(self) -> list[Path]:
        """The files that `relations` reads, those that may be absent among them."""

    def damage(self) -> list[str]:
        """What a look at the annotation files, without reading them, shows to be wrong; each names its file."""

    def about(self) -> dict[str, Any]:
        """What the metrics say beside the counts, as the release. Raises `DataError` where the parameters refuse the data."""

    def relations(self, work: Work) -> Generator[Batch, None, None]:
        """Every record, kept or rejected, images before their objects and relations.

        Raises `DataError` for damage that reaches beyond a record.
        """


def brought(data: Data) -> DataSet:
    """The data set that another package brings as `data.kind`. Raises `ParamsError` where none does."""
    there = entry_points(group=PLUGINS)
    if data.kind not in there.names:
        raise ParamsError(
            f"data.kind: got {data.kind!r}; valid: {', '.join((*KINDS, *sorted(there.names)))}; other packages bring data "
            f"sets by an entry point of the group {PLUGINS} (`pip install -e .` again where one was just added)"
        )
    return there[data.kind].load()(data)


def decode_whole(text: bytes | Raw, kind: type[T]) -> T:
    """JSON as `kind`; a float that is a whole number counts as an integer. Raises `msgspec.ValidationError`."""
    try:
        return msgspec.json.decode(text, type=kind)
    except msgspec.ValidationError as error:
        if "got `float`" not in str(error):
            raise
        return msgspec.convert(_whole(msgspec.json.decode(text)), kind)


def convert_whole(value: Any, kind: type[T]) -> T:
    """Plain values as `kind`, whole floats as in `decode_whole`. Raises `msgspec.ValidationError`."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        if "got `float`" not in str(error):
            raise
        return msgspec.convert(_whole(value), kind)


def _whole(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _whole(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_whole(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
