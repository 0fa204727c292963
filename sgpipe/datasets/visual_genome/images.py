"""Visual Genome's images: loose, or inside the official archives."""

import lzma
import struct
import zipfile
import zlib
from functools import cached_property
from pathlib import Path

from sgpipe.datasets.visual_genome.records import ImageRecord, Malformed, decode, id_key
from sgpipe.errors import DataError

FOLDERS = ("VG_100K", "VG_100K_2")
SUFFIXES = (".jpg", ".png")
ARCHIVES = ("images.zip", "images2.zip")
_ARCHIVE_ERRORS = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, OSError, EOFError, RuntimeError, ValueError, MemoryError
)  # fmt: skip
"""What `zipfile` and its decompressors raise for damaged archives, encryption, and methods that it does not know."""


class VisualGenomeImages:
    """`VG_100K/<id>.jpg` or `VG_100K_2/<id>.jpg` (or .png) under `root`, else in `images.zip`, `images2.zip`.

    Archives are opened on first use; every process needs an object of its own.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.sizes_file = root / "image_data.json"

    def __contains__(self, image_id: int) -> bool:
        return self._loose(image_id) is not None or self._packed(image_id) is not None

    def read(self, image_id: int) -> tuple[bytes, str]:
        """The encoded image, and the file's name for messages."""
        path = self._loose(image_id)
        if path is not None:
            return path.read_bytes(), str(path)
        packed = self._packed(image_id)
        if packed is None:
            places = ", ".join([*(f"{folder}/{image_id}.jpg" for folder in FOLDERS), *ARCHIVES])
            raise DataError(
                f"{self.root}: image {image_id} is not there (looked for {places}); `sgpipe fetch visual-genome` gets it"
            )
        archive, member = packed
        try:
            return archive.read(member), f"{archive.filename}: {member}"
        except _ARCHIVE_ERRORS as error:
            raise DataError(f"{archive.filename}: {member} cannot be read: {error}; get the archive again") from error

    def sizes(self) -> dict[int, tuple[int, int]]:
        """Width and height by image id; of a repeated id the first counts, as in canonicalize."""
        path = self.sizes_file
        key = id_key(path, None)
        try:
            records = decode(path.read_bytes().removeprefix(b"\xef\xbb\xbf"), ImageRecord, key).records
        except Malformed as error:
            raise DataError(f"{path}: {error}; the file is damaged, get it again") from None
        return {getattr(record, key): (record.width, record.height) for record in reversed(records)}

    def files(self) -> dict[int, str]:
        """Name and size of a loose image, name and checksum of a packed one; of several of one id that which is read."""
        packed = {
            int(stem): f"{member} {archive.getinfo(member).CRC}"
            for archive, members in reversed(self._archives)
            for stem, member in members.items()
            if stem.isdecimal()
        }
        loose = {
            int(path.stem): f"{path.parent.name}/{path.name} {path.stat().st_size}"
            for folder in reversed(FOLDERS)
            for path in sorted((self.root / folder).glob("*"), reverse=True)
            if path.suffix in SUFFIXES and path.stem.isdecimal()
        }
        return {**packed, **loose}

    def _loose(self, image_id: int) -> Path | None:
        paths = (self.root / folder / f"{image_id}{suffix}" for folder in FOLDERS for suffix in SUFFIXES)
        return next((path for path in paths if path.is_file()), None)

    @cached_property
    def _archives(self) -> list[tuple[zipfile.ZipFile, dict[str, str]]]:
        """The archives that there are, each with its images' names by id."""
        found = []
        for path in (self.root / name for name in ARCHIVES if (self.root / name).is_file()):
            try:
                archive = zipfile.ZipFile(path)
            except _ARCHIVE_ERRORS as error:
                raise DataError(f"{path}: not a readable archive: {error}; get it again") from error
            names = (name for name in archive.namelist() if Path(name).suffix in SUFFIXES)
            found.append((archive, {Path(name).stem: name for name in names}))
        return found

    def _packed(self, image_id: int) -> tuple[zipfile.ZipFile, str] | None:
        found = ((archive, members.get(str(image_id))) for archive, members in self._archives)
        return next(((archive, member) for archive, member in found if member is not None), None)
