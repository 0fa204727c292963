"""Visual Genome into a data folder: annotations and whole image archives, or single images."""

import json
import mmap
import shutil
import zipfile
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import requests
from PIL import Image
from tqdm import tqdm

from sgpipe.datasets.given import given_table
from sgpipe.datasets.tables import IMAGES, TRIPLES
from sgpipe.datasets.visual_genome.images import VisualGenomeImages
from sgpipe.errors import DataError
from sgpipe.fetch.catalogue import DIGESTS, IMAGE_FOLDERS, MEAN_IMAGE_BYTES, ROOM
from sgpipe.fetch.download import Check, FetchError, data_folder, get, part_of, save, size_of
from sgpipe.runs.atomic import atomic_path, write_json

REJECTS = "fetch_rejects.json"
FAILURES_IN_A_ROW = 25


@dataclass
class Summary:
    """Numbers of files fetched now and of files that were there, and the images that could not be had."""

    fetched: int = 0
    present: int = 0
    rejects: list[dict[str, Any]] = field(default_factory=list)


class WantedImage(NamedTuple):
    """An image: its place in the data folder, its address, and the check of its content."""

    image_id: int
    name: str
    url: str
    check: Check


def _wrong(path: Path, what: str, error: object = "") -> ValueError:
    with path.open("rb") as stream:
        return ValueError(f"not {what} ({error or 'wrong content'}; it begins with {repr(stream.read(24))[1:]})")


def check_zip(path: Path) -> None:
    """Raise `ValueError` unless every member of the archive unpacks to its CRC-32."""
    try:
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():
                raise zipfile.BadZipFile(f"member {damaged} fails its CRC")
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, OSError) as error:
        raise _wrong(path, "a sound ZIP archive", error) from None


def check_text(path: Path) -> None:
    """Raise `ValueError` unless the file is UTF-8 text, and no web page that a proxy sent in its place."""
    text = path.read_text(encoding="utf-8").strip()
    if not text or text.startswith("<"):
        raise _wrong(path, "a list of aliases")


def check_image(path: Path, width: int, height: int) -> None:
    """Raise `ValueError` unless every pixel decodes and the image has the size its boxes were drawn for."""
    try:
        with Image.open(path) as image:
            image.load()
            found = image.size
    except Exception as error:  # decoders raise whatever their parser meets
        raise _wrong(path, "a sound image", error) from None
    if found != (width, height):
        raise ValueError(f"the image is {found[0]}×{found[1]}, its annotations are for {width}×{height}")


def unpack_json(archive: Path, target: Path) -> None:
    """Unpack the only JSON member of `archive` to `target`, which is there whole or not at all.

    Raises `FetchError` if the archive has another content, or if `target` is something else already.
    """
    with zipfile.ZipFile(archive) as opened:
        names = [name for name in opened.namelist() if name.endswith(".json") and "__MACOSX" not in name]
        if len(names) != 1 or names[0].startswith("/") or ".." in names[0].split("/"):
            raise FetchError(f"{archive}: it must hold one .json file, it holds {names}")
        member = opened.getinfo(names[0])
        if not target.is_file():
            with atomic_path(target) as temporary, temporary.open("wb") as out, opened.open(member) as source:
                shutil.copyfileobj(source, out, 1 << 20)
        elif target.stat().st_size != member.file_size or _crc(target) != member.CRC:
            raise FetchError(f"{target}: not what {archive.name} holds; move or delete it and run again")


def _crc(path: Path) -> int:
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return zlib.crc32(data)


def _require_space(root: Path, needed: int) -> None:
    free = shutil.disk_usage(root).free
    if needed * 1.05 > free:
        raise FetchError(
            f"{root}: {needed * 1.05 / 2**30:.2f} GiB are needed, {free / 2**30:.2f} GiB are free; free some "
            "space, choose another --root, or fetch only what curated triples need with --triples"
        )


def fetch_archives(root: Path, files: dict[str, str], http: requests.Session, pinned: bool = True) -> Summary:
    """Get whole archives, a mapping of name to address, into `root`; those of JSON are unpacked beside themselves.

    Unless `pinned`, content may differ from the published. Raises `FetchError` naming each file that could not
    be had, after all others were got.
    """
    summary, failures = Summary(), list[str]()
    with data_folder(root) as hub:
        archives = {name: root / url.rsplit("/", 1)[-1] for name, url in files.items()}
        missing = {name: archive for name, archive in archives.items() if not archive.is_file()}
        _require_space(root, sum(ROOM.get(name, 0) - size_of(part_of(path)) for name, path in missing.items()))
        for name, archive in archives.items():
            if pinned and archive.name in DIGESTS:
                hub.registry[archive.name] = DIGESTS[archive.name]
            check = check_text if name.endswith(".txt") else check_zip
            try:
                downloaded = get(hub, archive.name, files[name], http, check, bar=True)
                save(hub)
                if name.endswith(".json"):
                    unpack_json(archive, root / name)
            except FetchError as error:
                failures.append(str(error))
            else:
                summary.fetched += downloaded
                summary.present += not downloaded
    if failures:
        raise FetchError(f"{len(failures)} of {len(files)} files could not be had: {'; '.join(failures)}")
    return summary


def wanted_images(triples: Iterable[Path], images: Path, images_url: str | None) -> list[WantedImage]:
    """The images that the triples of all the given tables show, ascending by id.

    Addresses are the `url` column of `images`; with `images_url`, only their last two parts under that base.
    """
    tables = [given_table("--triples", path, TRIPLES, "outputs/curated/triples.parquet", ["image_id"]) for path in triples]
    ids = {i for table in tables for i in table["image_id"].to_pylist()}
    rows = {
        row["image_id"]: row
        for row in given_table("--images-table", images, IMAGES, "outputs/canonical/images.parquet").to_pylist()
    }
    if unknown := sorted(ids - rows.keys()):
        raise DataError(
            f"{images}: {len(unknown)} images of the triples are not in it (first: {unknown[0]}); the tables are "
            "of different runs, run `dvc repro curate`"
        )
    wanted = []
    for image_id in sorted(ids):
        row, url = rows[image_id], rows[image_id]["url"] or ""
        path = PurePosixPath(urlsplit(url).path)
        if not path.name or (images_url is None and not url.startswith(("http://", "https://"))):
            raise DataError(f"{images}: image {image_id} has the address {url!r}, not one of http:// or https://")
        folder = path.parent.name if path.parent.name in IMAGE_FOLDERS else IMAGE_FOLDERS[0]
        if images_url is not None:
            url = f"{images_url.rstrip('/')}/{folder}/{path.name}"
        name = f"{folder}/{image_id}{path.suffix.lower() or '.jpg'}"
        check = partial(check_image, width=row["width"], height=row["height"])
        wanted.append(WantedImage(image_id, name, url, check))
    return wanted


def fetch_images(root: Path, images: list[WantedImage], http: requests.Session, connections: int = 4) -> Summary:
    """Get single images into `root`; those in its image archives count as present.

    An image that cannot be had, or is not what its annotations were made for, is recorded in
    `fetch_rejects.json` with the reason, and the rest goes on. Raises `FetchError` when many in a row fail, for
    then the server or the address is at fault.
    """
    with data_folder(root) as hub, ThreadPoolExecutor(connections) as pool:
        store = VisualGenomeImages(root)
        loose = [image for image in images if (root / image.name).is_file() or image.image_id not in store]
        _require_space(root, sum(not (root / image.name).is_file() for image in loose) * MEAN_IMAGE_BYTES)
        for name in IMAGE_FOLDERS:
            (root / name).mkdir(exist_ok=True)
        summary, in_a_row = Summary(present=len(images) - len(loose)), 0

        def outcome_of(image: WantedImage) -> bool | FetchError:
            try:
                return get(hub, image.name, image.url, http, image.check)
            except FetchError as error:
                return error

        try:
            outcomes = tqdm(pool.map(outcome_of, loose), desc="images", total=len(loose))
            for image, outcome in zip(loose, outcomes, strict=True):
                if isinstance(outcome, bool):
                    in_a_row = 0
                    summary.fetched += outcome
                    summary.present += not outcome
                    continue
                in_a_row += 1
                summary.rejects.append({"image_id": image.image_id, "url": image.url, "reason": str(outcome)})
                if in_a_row == FAILURES_IN_A_ROW:
                    raise FetchError(
                        f"{in_a_row} images in a row could not be had (last: {outcome}); {summary.fetched} were "
                        "got. Check the network and --images-url, then run the same command again"
                    )
        finally:
            pool.shutdown(cancel_futures=True)
            (root / REJECTS).unlink(missing_ok=True)
            if summary.rejects:
                write_json({"rejects": summary.rejects}, root / REJECTS)
    return summary


def read_rejects(path: Path) -> list[dict[str, Any]]:
    """The rejects that an earlier run recorded; empty where there is no such file. Raises `DataError` for a damaged one."""
    if not path.is_file():
        return []
    try:
        rejects = json.loads(path.read_bytes())["rejects"]
        return [{**row, "reason": row["reason"]} for row in rejects]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not what `sgpipe fetch` wrote ({error}); delete it") from None
