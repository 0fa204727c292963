"""Files of a data set: its images by id, loose in folders or inside archives, and a first look at its JSON."""

import lzma
import struct
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

from sgpipe.errors import DataError

SUFFIXES = (".jpg", ".png")
_ARCHIVE_ERRORS = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, OSError, EOFError, RuntimeError, ValueError, MemoryError
)  # fmt: skip
"""What `zipfile` and its decompressors raise for damaged archives, encryption, and methods that it does not know."""


class StoredImages(ABC):
    """`<folder>/<stem>.jpg` (or .png) under `root`, else of that name in an archive; a data set says folders, archives and stems.

    Archives are opened on first use; every process needs an object of its own.
    """

    folders: tuple[str, ...]
    archives: tuple[str, ...]

    def __init__(self, root: Path) -> None:
        self.root = root

    def stem(self, image_id: int) -> str:
        """The file name of an image, without its suffix."""
        return str(image_id)

    def image_id(self, stem: str) -> int | None:
        """The image that a file of this name shows; None where it is no image's name."""
        return int(stem) if stem.isascii() and stem.isdecimal() else None

    @abstractmethod
    def remedy(self, triples: Path | None = None) -> str:
        """What to do where images are missing."""

    def __contains__(self, image_id: int) -> bool:
        return self._loose(image_id) is not None or self._packed(image_id) is not None

    def read(self, image_id: int) -> tuple[bytes, str]:
        """The encoded image, and the file's name for messages."""
        path = self._loose(image_id)
        if path is not None:
            return path.read_bytes(), str(path)
        packed = self._packed(image_id)
        if packed is None:
            places = ", ".join([*(f"{folder}/{self.stem(image_id)}.jpg" for folder in self.folders), *self.archives])
            raise DataError(f"{self.root}: image {image_id} is not there (looked for {places}); {self.remedy()}")
        archive, member = packed
        try:
            return archive.read(member), f"{archive.filename}: {member}"
        except _ARCHIVE_ERRORS as error:
            raise DataError(f"{archive.filename}: {member} cannot be read: {error}; get the archive again") from error

    def files(self) -> dict[int, str]:
        """Name and size of a loose image, name and checksum of a packed one; of several of one id that which is read."""
        packed = {
            image_id: f"{member} {archive.getinfo(member).CRC}"
            for archive, members in reversed(self._archives)
            for stem, member in members.items()
            if (image_id := self.image_id(stem)) is not None
        }
        loose = {
            image_id: f"{path.parent.name}/{path.name} {path.stat().st_size}"
            for folder in reversed(self.folders)
            for path in sorted((self.root / folder).glob("*"), reverse=True)
            if path.suffix in SUFFIXES and (image_id := self.image_id(path.stem)) is not None
        }
        return {**packed, **loose}

    def _loose(self, image_id: int) -> Path | None:
        stem = self.stem(image_id)
        paths = (self.root / folder / f"{stem}{suffix}" for folder in self.folders for suffix in SUFFIXES)
        return next((path for path in paths if path.is_file()), None)

    @cached_property
    def _archives(self) -> list[tuple[zipfile.ZipFile, dict[str, str]]]:
        """The archives that there are, each with its images' names by stem."""
        found = []
        for path in (self.root / name for name in self.archives if (self.root / name).is_file()):
            try:
                archive = zipfile.ZipFile(path)
            except _ARCHIVE_ERRORS as error:
                raise DataError(f"{path}: not a readable archive: {error}; get it again") from error
            names = (name for name in archive.namelist() if Path(name).suffix in SUFFIXES)
            found.append((archive, {Path(name).stem: name for name in names}))
        return found

    def _packed(self, image_id: int) -> tuple[zipfile.ZipFile, str] | None:
        stem = self.stem(image_id)
        found = ((archive, members.get(stem)) for archive, members in self._archives)
        return next(((archive, member) for archive, member in found if member is not None), None)


def cut_off(paths: Iterable[Path], opening: bytes, closing: bytes) -> list[str]:
    """What a look at both ends of JSON files shows to be wrong, each with its file."""
    found = {path: _cut_off(path, opening, closing) for path in paths}
    return [f"{path}: {problem}" for path, problem in found.items() if problem is not None]


def _cut_off(path: Path, opening: bytes, closing: bytes) -> str | None:
    if not path.is_file():
        return "no such file"
    size = path.stat().st_size
    with path.open("rb") as stream:
        start = stream.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")
        stream.seek(max(0, size - 64))
        end = stream.read().rstrip()
    if not start.startswith(opening):
        return f"not a JSON {'list' if opening == b'[' else 'object'}; it begins with {start[:24]!r}"
    return None if end.endswith(closing) else f"cut off; it does not end with {closing.decode()}"
