"""Is this file what it claims to be? Each check raises `Refused` with a reason, and none needs the file
in memory.
"""

import hashlib
import mmap
import shutil
import zipfile
import zlib
from pathlib import Path

import msgspec
from PIL import Image

from sgpipe.fetch.transfer import FetchError, Refused
from sgpipe.runs.atomic import atomic_path


def _start(path: Path) -> str:
    with path.open("rb") as stream:
        return repr(stream.read(24))[1:]


def check_size(path: Path, size: int | None) -> None:
    """The file has exactly `size` bytes, where a size is known."""
    found = path.stat().st_size
    if size is not None and found != size:
        raise Refused(f"{found} bytes, the published file has {size}")


def check_digest(path: Path, digest: str | None) -> str:
    """SHA-256 of the file, after comparing it with `digest` (`"algorithm:hex"`) where one is known."""
    with path.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        if digest is not None:
            algorithm, _, wanted = digest.partition(":")
            stream.seek(0)
            found = sha256 if algorithm == "sha256" else hashlib.file_digest(stream, algorithm).hexdigest()
            if found != wanted:
                raise Refused(f"{algorithm} is {found}, the published file has {wanted}")
    return sha256


def check_zip(path: Path) -> None:
    """Every member of the archive unpacks to its CRC-32. (`zipfile` raises NotImplementedError for an unknown compression.)"""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise Refused(f"not a sound ZIP archive ({error}; it begins with {_start(path)})") from None
    if damaged is not None:
        raise Refused(f"member {damaged} of the ZIP archive fails its CRC")


def check_json(path: Path) -> int:
    """The file is a JSON list; returns its length. It is mapped, not read: a 744 MB file takes tens of MB."""
    if path.stat().st_size == 0:
        raise Refused("an empty file, not JSON")
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        view = memoryview(data)
        try:
            return len(msgspec.json.decode(view, type=list[msgspec.Raw]))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Refused(f"not a JSON list ({error}; it begins with {_start(path)})") from None
        finally:
            view.release()


def check_text(path: Path) -> None:
    """The file is non-empty UTF-8 text, and no web page that a proxy sent in its place."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise Refused(f"not UTF-8 text ({error})") from None
    if not text.strip() or text.lstrip().startswith("<"):
        raise Refused(f"not a list of aliases (it begins with {_start(path)})")


def check_image(path: Path, width: int, height: int) -> None:
    """Every pixel decodes, and the image is `width` × `height` pixels, for which its boxes were drawn."""
    try:
        with Image.open(path) as image:
            image.load()
            found = image.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise Refused(f"not a sound image ({error}; it begins with {_start(path)})") from None
    if found != (width, height):
        raise Refused(f"the image is {found[0]}×{found[1]}, its annotations are for {width}×{height}")


def unpack_json(archive: Path, target: Path) -> int:
    """Unpack the only JSON member of `archive` to `target`, atomically and checked; returns the list's
    length.
    """
    with zipfile.ZipFile(archive) as opened:
        members = [
            m
            for m in opened.infolist()
            if m.filename.endswith(".json") and not m.filename.startswith("__MACOSX")
        ]
        if len(members) != 1:
            raise Refused(f"one .json member is needed, found {[m.filename for m in members]}")
        free = shutil.disk_usage(target.parent).free
        if members[0].file_size > free:
            raise FetchError(
                f"{target}: unpacking needs {members[0].file_size} bytes, {free} are free; free some space "
                "and run again"
            )
        with atomic_path(target) as temporary:
            with opened.open(members[0]) as source, temporary.open("wb") as out:
                shutil.copyfileobj(source, out, 1 << 20)
            return check_json(temporary)
