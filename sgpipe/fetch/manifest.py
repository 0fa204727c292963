"""What was fetched: SHA-256, size and origin of every file, so that a later run can tell whether it is
still that file.
"""

import json
import threading
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec

from sgpipe.errors import DataError
from sgpipe.runs.atomic import write_json

NAME = "fetch_manifest.json"
SAVE_EVERY = 256


@dataclass(frozen=True)
class Entry:
    """One file of the data folder. `url` is where it, or the archive that it was unpacked from, came from."""

    sha256: str
    size: int
    url: str


class _File(msgspec.Struct, forbid_unknown_fields=True):
    version: int
    files: dict[str, Entry]


class Manifest:
    """The manifest of a data folder; entries may be added from several threads."""

    def __init__(self, root: Path) -> None:
        """Read `root`'s manifest, or start an empty one. Raises `DataError` if it cannot be understood."""
        self.root, self.path = root, root / NAME
        self._lock, self._unsaved = threading.Lock(), 0
        self.files: dict[str, Entry] = {}
        if self.path.is_file():
            try:
                self.files = msgspec.json.decode(self.path.read_bytes(), type=_File).files
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise DataError(f"{self.path}: {error}; delete it, and all files are checked anew") from None

    def add(self, name: str, entry: Entry) -> None:
        """Record a checked file; the manifest is saved now and then."""
        with self._lock:
            self.files[name] = entry
            self._unsaved += 1
            if self._unsaved >= SAVE_EVERY:
                self._save()

    def drop(self, name: str) -> None:
        with self._lock:
            self.files.pop(name, None)

    def save(self) -> None:
        """Write the manifest, sorted by name and without dates: the same files give the same bytes."""
        with self._lock:
            self._save()

    def _save(self) -> None:
        write_json(
            {"version": 1, "files": {name: asdict(entry) for name, entry in self.files.items()}}, self.path
        )
        self._unsaved = 0


def write_rejects(path: Path, rejects: list[dict[str, object]]) -> None:
    """Write `[{"image_id", "url", "reason"}]` sorted by image, or remove the file where nothing was
    rejected.
    """
    if rejects:
        write_json({"rejects": sorted(rejects, key=lambda reject: str(reject["image_id"]).zfill(12))}, path)
    else:
        path.unlink(missing_ok=True)


def read_rejects(path: Path) -> list[dict[str, object]]:
    """The rejects that an earlier run recorded; empty where there is no such file."""
    return json.loads(path.read_text(encoding="utf-8"))["rejects"] if path.is_file() else []
