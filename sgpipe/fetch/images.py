"""Single images of Visual Genome: those that curated triples show, and no others."""

import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import httpx
from rich.console import Console

from sgpipe.errors import DataError
from sgpipe.fetch import catalogue, verify
from sgpipe.fetch.folder import Summary, download, locked, record, require_space, run_all, settle, unchanged
from sgpipe.fetch.manifest import Manifest, write_rejects
from sgpipe.fetch.progress import count_meter
from sgpipe.fetch.transfer import FetchError, Halted, Pacer, Part, Policy, Refused, client
from sgpipe.scene_graphs.tables import IMAGES, TRIPLES, read_table

REJECTS = "fetch_rejects.json"
FAILURES_IN_A_ROW = 25


@dataclass(frozen=True)
class Wanted:
    """One image: `name` is its place in the data folder, `width` × `height` what its boxes were drawn
    for (pixels).
    """

    image_id: int
    name: str
    url: str
    width: int
    height: int

    def check(self, path: Path) -> None:
        """Raise `Refused` unless `path` holds this image, whole and of the right size."""
        verify.check_image(path, self.width, self.height)


@dataclass(frozen=True)
class _Outcome:
    image: Wanted
    size: int = 0
    present: bool = False
    refused: str | None = None


def wanted_images(triples: Iterable[Path], images: Path, images_url: str | None) -> list[Wanted]:
    """The images that the triples of all the given tables show, ascending by id.

    Addresses are the `url` column of `images`; with `images_url`, only their last two parts under that base.
    """
    ids = sorted(
        {i for path in triples for i in read_table(path, TRIPLES, ["image_id"])["image_id"].to_pylist()}
    )
    rows = {row["image_id"]: row for row in read_table(images, IMAGES).to_pylist()}
    unknown = [image_id for image_id in ids if image_id not in rows]
    if unknown:
        raise DataError(
            f"{images}: {len(unknown)} images of the triples are not in it (first: {unknown[0]}); the tables "
            "are of different runs, "
            "run `dvc repro curate`"
        )
    return [_wanted(rows[image_id], images, images_url) for image_id in ids]


def _wanted(row: dict[str, Any], images: Path, images_url: str | None) -> Wanted:
    image_id, url = row["image_id"], row["url"] or ""
    path = PurePosixPath(urlsplit(url).path)
    if not path.name or (images_url is None and urlsplit(url).scheme not in ("http", "https")):
        raise DataError(
            f"{images}: image {image_id} has the address {url!r}, not one that begins with http:// or "
            "https://"
        )
    folder = path.parent.name if path.parent.name in catalogue.IMAGE_FOLDERS else catalogue.IMAGE_FOLDERS[0]
    if images_url is not None:
        url = f"{images_url.rstrip('/')}/{folder}/{path.name}"
    return Wanted(
        image_id, f"{folder}/{image_id}{path.suffix.lower() or '.jpg'}", url, row["width"], row["height"]
    )


def _zipped(root: Path) -> set[str]:
    """`folder/name` of every member of the image archives that lie in `root`."""
    names: set[str] = set()
    for path in (root / archive.name for archive in catalogue.IMAGE_ARCHIVES):
        if path.is_file():
            try:
                with zipfile.ZipFile(path) as opened:
                    names.update(opened.namelist())
            except (zipfile.BadZipFile, OSError) as error:
                raise DataError(f"{path}: {error}; delete it or fetch it again") from None
    return names


def _at_hand(manifest: Manifest, image: Wanted) -> bool:
    """The image lies there: as it was fetched, or, put there by hand, sound and of the right size."""
    if image.name in manifest.files:
        return unchanged(manifest, image.name)
    try:
        image.check(manifest.root / image.name)
    except (Refused, FileNotFoundError):
        return False
    record(manifest, image.name, image.url)
    return True


def _get(image: Wanted, manifest: Manifest, http: httpx.Client, policy: Policy, pacer: Pacer) -> _Outcome:
    if _at_hand(manifest, image):
        return _Outcome(image, present=True)
    path = manifest.root / image.name
    part = Part(path.with_name(f".{path.name}.part"), image.url, trusted=False)
    try:
        download(http, part, policy, pacer, image.check, lambda at: None)
    except Halted:
        raise
    except FetchError as error:
        manifest.drop(image.name)
        return _Outcome(image, refused=str(error).removeprefix(f"{image.url}: "))
    settle(part, path)
    return _Outcome(image, size=record(manifest, image.name, image.url))


def fetch_images(root: Path, wanted: list[Wanted], policy: Policy, console: Console) -> Summary:
    """Get single images into `root/VG_100K` and `root/VG_100K_2`; those in `root`'s image archives count as
    present.

    An image that cannot be had, or is not what its annotations were made for, is recorded in
    `fetch_rejects.json` with the reason, and the rest goes on. Raises `Halted` when many in a row fail, for
    then the server or the address is at fault.
    """
    summary, in_a_row = Summary(), 0
    with locked(root), client(policy) as http, count_meter(console, "images", len(wanted)) as advance:
        manifest, pacer, zipped = Manifest(root), Pacer(policy.rate), _zipped(root)
        loose = [image for image in wanted if image.name not in zipped]
        summary.present = len(wanted) - len(loose)
        advance(summary.present, 0)
        absent = sum(not (root / image.name).is_file() for image in loose)
        require_space(root, absent * catalogue.MEAN_IMAGE_BYTES)
        for folder in catalogue.IMAGE_FOLDERS:
            (root / folder).mkdir(exist_ok=True)

        def collect(outcome: _Outcome) -> None:
            nonlocal in_a_row
            advance(1, outcome.size)
            if outcome.refused is None:
                in_a_row = 0
                summary.present += outcome.present
                summary.fetched += not outcome.present
                summary.size += outcome.size
                return
            image = outcome.image
            summary.rejects.append({"image_id": image.image_id, "url": image.url, "reason": outcome.refused})
            in_a_row += 1
            if in_a_row >= FAILURES_IN_A_ROW:
                raise Halted(
                    f"{in_a_row} images in a row could not be had (last: {image.url}: {outcome.refused}); "
                    f"{summary.fetched} were got. "
                    "Check the network and --images-url, then run the same command again"
                )

        try:
            jobs = [partial(_get, image, manifest, http, policy, pacer) for image in loose]
            run_all(jobs, policy.connections, pacer, collect)
        finally:
            manifest.save()
            write_rejects(root / REJECTS, summary.rejects)
    return summary
