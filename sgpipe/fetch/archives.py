"""Whole archives of Visual Genome into a data folder."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
from rich.console import Console

from sgpipe.errors import DataError
from sgpipe.fetch import catalogue, verify
from sgpipe.fetch.catalogue import RemoteFile
from sgpipe.fetch.folder import Summary, download, locked, record, require_space, run_all, settle, unchanged
from sgpipe.fetch.manifest import Manifest
from sgpipe.fetch.progress import Meter, file_meters
from sgpipe.fetch.transfer import FetchError, Halted, Pacer, Part, Policy, Refused, client

CONNECTIONS = 2
"""Large files from one university server: more connections would be greedy, not faster."""


@dataclass(frozen=True)
class Source:
    """Where archives come from. Unless `pinned`, sizes and digests need not be those of the published
    files.
    """

    annotations_url: str = catalogue.ANNOTATIONS_URL
    images_url: str = catalogue.IMAGES_URL
    pinned: bool = True

    def size(self, http: httpx.Client, remote: RemoteFile, url: str) -> int:
        """Size as published, else as a HEAD request states it, else 0: nothing can be planned with it."""
        if self.pinned and remote.size is not None:
            return remote.size
        try:
            length = http.head(url).raise_for_status().headers.get("Content-Length", "")
        except httpx.HTTPError:
            return 0
        return int(length) if length.isdigit() else 0

    def check(self, remote: RemoteFile, path: Path) -> None:
        """Raise `Refused` unless `path` holds a sound file, and the published one where that is asked for."""
        if self.pinned:
            verify.check_size(path, remote.size)
            verify.check_digest(path, remote.digest)
        if remote.kind == "text":
            verify.check_text(path)
        else:
            verify.check_zip(path)


def _adopt(manifest: Manifest, remote: RemoteFile, url: str, pinned: bool) -> None:
    """Take a file that was put there by hand, if it is provably the published one."""
    path = manifest.root / remote.name
    try:
        if not pinned or remote.digest is None or remote.kind == "json_zip":
            raise Refused(
                "it was not fetched by this command, and no published digest tells whether it is the right "
                "one"
            )
        verify.check_digest(path, remote.digest)
    except Refused as error:
        raise DataError(f"{path}: {error}; move it away or give another --root") from None
    record(manifest, remote.name, url)


def fetch_archives(
    root: Path, files: Iterable[RemoteFile], source: Source, policy: Policy, console: Console
) -> Summary:
    """Get whole archives into `root`; JSON archives are unpacked, image archives stay zipped.

    A file that is there and unchanged since it was fetched is left alone; one that was changed is fetched
    again. Raises `FetchError` naming each file that could not be had, after all others were got, and
    `DataError` if `root` holds a file of the same name from elsewhere.
    """
    summary, failures = Summary(), list[str]()
    with locked(root), client(policy) as http:
        manifest, pacer = Manifest(root), Pacer(policy.rate)
        missing: list[tuple[RemoteFile, Part]] = []
        for remote in files:
            url = remote.url(source.annotations_url, source.images_url)
            if not unchanged(manifest, remote.name):
                if remote.name in manifest.files or not (root / remote.name).exists():
                    trusted = source.pinned and remote.digest is not None
                    missing.append((remote, Part(root / f"{remote.archive}.part", url, trusted)))
                    continue
                _adopt(manifest, remote, url, source.pinned)
            summary.present += 1
        sizes = [source.size(http, remote, part.url) for remote, part in missing]
        unpacked = sum(remote.unpacked for remote, _ in missing) if source.pinned else 0
        require_space(root, sum(sizes) + unpacked - sum(part.position()[0] for _, part in missing))

        def get(remote: RemoteFile, part: Part, meter: Meter) -> int | str:
            try:
                download(http, part, policy, pacer, partial(source.check, remote), meter)
                size = part.path.stat().st_size
                if remote.kind == "json_zip":
                    verify.unpack_json(part.path, root / remote.name)
                    part.discard()
                else:
                    settle(part, root / remote.name)
            except Halted:
                raise
            except FetchError as error:
                return str(error) if part.url in str(error) else f"{part.url}: {error}"
            record(manifest, remote.name, part.url)
            return size

        def collect(result: int | str) -> None:
            if isinstance(result, str):
                failures.append(result)
            else:
                summary.fetched += 1
                summary.size += result

        try:
            with file_meters(console) as meters:
                jobs = [
                    partial(get, remote, part, meters(remote.archive, part.position()[0], size or None))
                    for (remote, part), size in zip(missing, sizes, strict=True)
                ]
                run_all(jobs, min(policy.connections, CONNECTIONS), pacer, collect)
        finally:
            manifest.save()
    if failures:
        raise FetchError(
            f"{len(failures)} of {len(missing)} files could not be had: " + "; ".join(sorted(failures))
        )
    return summary
