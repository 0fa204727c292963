"""What every download into a data folder shares: the lock, the free space, checked transfers and the
worker threads.
"""

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import httpx
from filelock import FileLock, Timeout

from sgpipe.fetch import verify
from sgpipe.fetch.manifest import Entry, Manifest
from sgpipe.fetch.progress import Meter
from sgpipe.fetch.transfer import FetchError, Halted, Pacer, Part, Policy, Refused, fetch_part

T = TypeVar("T")
CORRUPT_TRIES = 3


@dataclass
class Summary:
    """Files fetched now, files that were already there, bytes fetched, and what could not be had."""

    fetched: int = 0
    present: int = 0
    size: int = 0
    rejects: list[dict[str, object]] = field(default_factory=list)


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """Make `root`, keep every other fetch out of it, and turn errors of the file system into `Halted`."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(root / ".fetch.lock")
        with lock.acquire(timeout=0):
            yield
    except Timeout:
        raise FetchError(
            f"{root}: another fetch is writing here (lock {root / '.fetch.lock'}); wait for it or stop it"
        ) from None
    except OSError as error:
        raise Halted(
            f"{error.filename or root}: {error.strerror}; what was got is kept, mend this and run again"
        ) from error


def require_space(root: Path, needed: int) -> None:
    """Refuse to start what cannot end: `needed` bytes and a twentieth more must be free under `root`."""
    free = shutil.disk_usage(root).free
    if needed * 1.05 > free:
        raise FetchError(
            f"{root}: {needed * 1.05 / 2**30:.2f} GiB are needed, {free / 2**30:.2f} GiB are free; free some "
            "space, choose another "
            "--root, or fetch only what curated triples need with --triples"
        )


def unchanged(manifest: Manifest, name: str) -> bool:
    """The file is there, byte for byte as the manifest says."""
    path, entry = manifest.root / name, manifest.files.get(name)
    return entry is not None and path.is_file() and verify.check_digest(path, None) == entry.sha256


def record(manifest: Manifest, name: str, url: str) -> int:
    """Enter the file into the manifest as it is now; returns its size."""
    path = manifest.root / name
    size = path.stat().st_size
    manifest.add(name, Entry(verify.check_digest(path, None), size, url))
    return size


def download(
    http: httpx.Client,
    part: Part,
    policy: Policy,
    pacer: Pacer,
    check: Callable[[Path], object],
    meter: Meter,
) -> None:
    """Bring `part` to its full length and check it; content that fails is thrown away and fetched anew,
    a few times.
    """
    for attempt in range(1, CORRUPT_TRIES + 1):
        fetch_part(http, part, policy, pacer, meter)
        try:
            check(part.path)
            return
        except Refused as error:
            part.discard()
            if attempt == CORRUPT_TRIES:
                raise Refused(f"{part.url}: {error}; fetched {attempt} times") from None


def settle(part: Part, target: Path) -> None:
    """Give a checked file its final name, after its bytes have reached the disk."""
    with part.path.open("rb+") as stream:
        os.fsync(stream.fileno())
    part.path.replace(target)
    part.note.unlink(missing_ok=True)


def run_all(
    jobs: Iterable[Callable[[], T]], threads: int, pacer: Pacer, collect: Callable[[T], None]
) -> None:
    """Run every job in `threads` threads and hand each result to `collect` in this one.

    When a job or `collect` raises, or on Ctrl-C, the jobs under way are told to stop, the others do not
    start, and the error is raised.
    """
    with ThreadPoolExecutor(threads, "fetch") as pool:
        try:
            for future in as_completed([pool.submit(job) for job in jobs]):
                collect(future.result())
        except BaseException:
            pacer.stop.set()
            pool.shutdown(cancel_futures=True)
            raise
