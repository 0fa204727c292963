"""Downloads into a data folder by pooch: resumed, verified before they are in place, their hashes recorded."""

import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pooch
import requests
from filelock import FileLock, Timeout
from requests.adapters import HTTPAdapter
from tqdm import tqdm
from urllib3.util import Retry

from sgpipe.errors import DataError, SgpipeError
from sgpipe.runs.atomic import atomic_path

RECORD = "fetch_registry.txt"
TRIES = 3
CHUNK = 1 << 16

Check = Callable[[Path], object]
"""Raises `ValueError` for a file of the wrong content."""


class FetchError(SgpipeError):
    """A file cannot be had; what is already on disk stays and the same command continues from it."""


def session(connections: int, retries: int) -> requests.Session:
    """An HTTP session that repeats a request `retries` times where that may help, after pauses of 2 s, 4 s … or
    those that the server asks for (`Retry-After`, 300 s at most).
    """
    http = requests.Session()
    http.headers["User-Agent"] = "sgpipe (scene-graph research pipeline)"
    http.headers["Accept-Encoding"] = "identity"
    retry = Retry(retries, backoff_factor=1.0, retry_after_max=300, raise_on_status=False)
    retry.status_forcelist = {408, 425, 429, 500, 502, 503, 504}
    for scheme in ("http://", "https://"):
        http.mount(scheme, HTTPAdapter(pool_maxsize=connections, max_retries=retry))
    return http


class ResumingDownloader:
    """Downloader for pooch that keeps an unfinished file and asks for its missing bytes only.

    `part` grows across cuts and runs; `note` beside it holds its address and validator (RFC 9110 §8.8: a strong
    ETag, else Last-Modified), sent as `If-Range`, so that bytes of two versions of a file are never joined.
    """

    def __init__(self, http: requests.Session, path: Path, check: Check, bar: bool) -> None:
        self.part, self.note = part_of(path), path.with_name(f".{path.name}.part.txt")
        self._http, self._check, self._hidden, self.complete = http, check, not bar, False

    def __call__(self, url: str, output_file: str, _: object) -> None:
        if self.complete:
            self.discard()
        reached = size_of(self.part)
        while not self.complete:
            try:
                self._receive(url)
                self.complete = True
            except requests.RequestException:
                if size_of(self.part) <= reached:
                    raise
                reached = size_of(self.part)
        self._check(self.part)
        Path(output_file).unlink()
        try:
            os.link(self.part, output_file)
        except OSError:
            self.part.replace(output_file)

    def discard(self) -> None:
        """Forget what was received."""
        self.part.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)
        self.complete = False

    def _receive(self, url: str) -> None:
        note = self.note.read_text(encoding="utf-8").splitlines() if self.note.is_file() else []
        kept = size_of(self.part) if len(note) == 2 and note[0] == url else 0
        headers = {"Range": f"bytes={kept}-", "If-Range": note[1]} if kept else {}
        try:
            response = self._http.get(url, headers=headers, stream=True, timeout=30)
        except requests.RequestException as error:
            raise FetchError(f"{url}: {_one_line(error)}") from None
        with response:
            status, sent = response.status_code, response.headers
            span = sent.get("Content-Range", "")
            if kept and status == 416 and span == f"bytes */{kept}":
                return
            resumed = kept > 0 and status == 206 and span.startswith(f"bytes {kept}-")
            if status in (206, 416) and not resumed:
                self.discard()
                raise requests.ConnectionError(f"asked for the bytes from {kept}, the answer has {span!r}")
            if status not in (200, 206):
                raise FetchError(f"{url}: HTTP {status} {response.reason}")
            if not resumed:
                kept = 0
                self.discard()
                strong = sent.get("ETag", "").startswith('"')
                validator = sent["ETag"] if strong else sent.get("Last-Modified", "")
                self.note.write_text(f"{url}\n{validator}", encoding="utf-8")
            total = kept + int(sent.get("Content-Length", 0)) or None
            shown = {"desc": self.part.name[1:-5], "unit": "B", "unit_scale": True, "disable": self._hidden}
            with self.part.open("ab") as out, tqdm(total=total, initial=kept, **shown) as bar:
                for chunk in response.iter_content(CHUNK):
                    bar.update(out.write(chunk))


def part_of(path: Path) -> Path:
    """Where the unfinished download of `path` grows."""
    return path.with_name(f".{path.name}.part")


def size_of(path: Path) -> int:
    """Size in bytes, 0 where there is no such file."""
    return path.stat().st_size if path.is_file() else 0


def _one_line(error: Exception) -> str:
    text = " ".join(str(getattr(error.args[0], "reason", error) if error.args else error).split())
    return text + (" Install PySocks, or unset ALL_PROXY and HTTPS_PROXY" if "SOCKS" in text else "")


@contextmanager
def data_folder(root: Path) -> Iterator[pooch.Pooch]:
    """Make `root`, keep every other fetch out of it, and yield it as a `Pooch` that knows the hashes recorded in
    `fetch_registry.txt`, which is written at the end, whatever happens.

    Raises `FetchError` in place of errors of the file system.
    """
    pooch.get_logger().setLevel("WARNING")
    hub = pooch.Pooch(root.absolute(), "", {}, {}, retry_if_failed=TRIES - 1, allow_updates=False)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / ".fetch.lock").acquire(timeout=0):
            try:
                if (root / RECORD).is_file():
                    hub.load_registry(root / RECORD)
            except (OSError, ValueError) as error:
                raise DataError(f"{root / RECORD}: {error}; delete it, and all is verified anew") from None
            hub.registry = {name: known for name, known in hub.registry.items() if (root / name).is_file()}
            try:
                yield hub
            finally:
                save(hub)
    except Timeout:
        raise FetchError(f"{root}: another fetch is writing here; wait for it or stop it") from None
    except OSError as error:
        where, what = error.filename or root, error.strerror or error
        raise FetchError(f"{where}: {what}; mend this and run the same command to continue") from None


def save(hub: pooch.Pooch) -> None:
    """Write name, hash and address of each file that is there, sorted: the same files give the same bytes."""
    present = [name for name in sorted(hub.registry) if (hub.abspath / name).is_file()]
    lines = [shlex.join((name, hub.registry[name], hub.urls.get(name, ""))) + "\n" for name in present]
    with atomic_path(hub.abspath / RECORD) as temporary:
        temporary.write_text("".join(lines), encoding="utf-8")


def get(hub: pooch.Pooch, name: str, url: str, http: requests.Session, check: Check, bar: bool = False) -> bool:
    """Download a file into the folder of `hub` unless it is there; returns whether it was downloaded.

    It must have the hash that `hub.registry` knows, if any, and pass `check`. Raises `FetchError` if it cannot be
    had, is not right `TRIES` times, or is there and is not right: nothing is overwritten.
    """
    path, known = hub.abspath / name, hub.registry.get(name)
    present, downloader = path.is_file(), ResumingDownloader(http, path, check, bar)
    hub.registry[name], hub.urls[name] = known, url
    try:
        if present and known is None:
            check(path)
        hub.fetch(name, downloader=downloader)
    except (requests.RequestException, ValueError) as error:
        if present:
            reason = "its hash is not the published or recorded one" if known else _one_line(error)
            raise FetchError(f"{path}: {reason}; move or delete it and run the same command again") from None
        if not downloader.complete:
            raise FetchError(f"{url}: {_one_line(error)}; run the same command to continue") from None
        downloader.discard()
        hint = "; --unpinned accepts another version" if known else ""
        raise FetchError(f"{url}: {_one_line(error)} Fetched {TRIES} times{hint}") from None
    downloader.discard()
    hub.registry[name] = known or f"sha256:{pooch.file_hash(path)}"
    return not present
