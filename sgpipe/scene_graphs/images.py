"""Images of a data folder in Visual Genome's layout, loose or inside the official archives."""

import hashlib
import io
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from sgpipe.errors import DataError

FOLDERS = ("VG_100K", "VG_100K_2")
SUFFIXES = (".jpg", ".png")
ARCHIVES = ("images.zip", "images2.zip")


class ImageStore:
    """Opens images by id: `VG_100K/<id>.jpg` or `VG_100K_2/<id>.jpg` (or .png) under `root`, else in `images.zip`, `images2.zip`.

    Archives are opened on first use; every process needs a store of its own.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._archives: list[tuple[zipfile.ZipFile, dict[str, str]]] | None = None

    def __contains__(self, image_id: int) -> bool:
        return self._loose(image_id) is not None or self._packed(image_id) is not None

    def load(self, image_id: int) -> NDArray[np.uint8]:
        """RGB pixels `[H, W, 3]`, 0–255. Raises `DataError` if the image is missing or cannot be decoded."""
        path = self._loose(image_id)
        if path is not None:
            return _decode(path.read_bytes(), str(path))
        packed = self._packed(image_id)
        if packed is None:
            places = ", ".join([*(f"{folder}/{image_id}.jpg" for folder in FOLDERS), *ARCHIVES])
            raise DataError(
                f"{self.root}: image {image_id} is not there (looked for {places}); `sgpipe fetch visual-genome` gets it"
            )
        archive, member = packed
        try:
            data = archive.read(member)
        except (zipfile.BadZipFile, OSError, EOFError) as error:
            raise DataError(
                f"{archive.filename}: {member} cannot be read: {error}; get the archive again"
            ) from error
        return _decode(data, f"{archive.filename}: {member}")

    def signature(self) -> str:
        """A hash that changes with the images: sizes of loose ones, checksums of packed ones. Raises `DataError` as `load`."""
        self._packed(0)
        entries = [
            f"{path.parent.name}/{path.name} {path.stat().st_size}"
            for folder in FOLDERS
            for path in (self.root / folder).glob("*")
            if path.suffix in SUFFIXES
        ]
        for archive, members in self._archives or ():
            entries += [f"{member} {archive.getinfo(member).CRC}" for member in members.values()]
        return hashlib.sha256("\n".join(sorted(entries)).encode()).hexdigest()[:16]

    def _loose(self, image_id: int) -> Path | None:
        paths = (self.root / folder / f"{image_id}{suffix}" for folder in FOLDERS for suffix in SUFFIXES)
        return next((path for path in paths if path.is_file()), None)

    def _packed(self, image_id: int) -> tuple[zipfile.ZipFile, str] | None:
        if self._archives is None:
            self._archives = []
            for name in ARCHIVES:
                path = self.root / name
                if not path.is_file():
                    continue
                try:
                    archive = zipfile.ZipFile(path)
                except zipfile.BadZipFile as error:
                    raise DataError(f"{path}: not a readable archive: {error}; get it again") from error
                members = {
                    Path(member).stem: member
                    for member in archive.namelist()
                    if Path(member).suffix in SUFFIXES
                }
                self._archives.append((archive, members))
        found = ((archive, members.get(str(image_id))) for archive, members in self._archives)
        return next(((archive, member) for archive, member in found if member is not None), None)


def _decode(data: bytes, source: str) -> NDArray[np.uint8]:
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image.convert("RGB"))
    except UnidentifiedImageError:
        raise DataError(f"{source}: the image cannot be decoded: no known format; get it again") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{source}: the image cannot be decoded: {error}; get it again") from error
