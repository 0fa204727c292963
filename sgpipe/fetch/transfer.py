"""One file over HTTP, whatever the connection does: resumed where it was cut, restarted where resuming is not
safe.

A file grows as `<name>.part`, with `<name>.part.json` beside it naming the validator (RFC 9110 §8.8: a strong
ETag or Last-Modified) under which its bytes were received. A later request asks for the rest with `Range` and
`If-Range` (§13.1.5, §14.2), so bytes of two versions of a file are never joined.
"""

import email.utils
import errno
import json
import random
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import httpx

from sgpipe.errors import SgpipeError
from sgpipe.runs.atomic import write_json

RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses after which the same request may succeed."""


class FetchError(SgpipeError):
    """A download cannot go on; what is already on disk stays and the same command continues from it."""


class Refused(FetchError):
    """The server answered, and the answer will not change by asking again (404, 403 …), or the content
    is wrong.
    """


class Halted(FetchError):
    """No transfer can go on now: the disk is full, the server asks for a long pause, or the user
    stopped the program.
    """


def _stopped() -> Halted:
    return Halted("stopped; run the same command again to continue")


@dataclass(frozen=True)
class Policy:
    """How often and how patiently to ask. Times in seconds; `rate` in requests per second over all
    connections, 0 = no limit.
    """

    connections: int = 4
    rate: float = 10.0
    retries: int = 6
    backoff: float = 1.0
    longest_wait: float = 300.0
    timeout: float = 30.0


def user_agent() -> str:
    """Name and version of this project, so that a server's owner can tell who asks."""
    try:
        return f"sgpipe/{version('sgpipe')} (scene-graph research pipeline; python-httpx/{httpx.__version__})"
    except PackageNotFoundError:
        return f"sgpipe (scene-graph research pipeline; python-httpx/{httpx.__version__})"


def client(policy: Policy) -> httpx.Client:
    """An HTTP client with the project's User-Agent and no transparent compression, so byte ranges mean
    the file's bytes.
    """
    return httpx.Client(
        headers={"User-Agent": user_agent(), "Accept-Encoding": "identity"},
        timeout=policy.timeout,
        follow_redirects=True,
        limits=httpx.Limits(max_connections=policy.connections, max_keepalive_connections=policy.connections),
    )


class Pacer:
    """Spaces requests evenly, and holds all of them back while a server asks for patience."""

    def __init__(self, rate: float) -> None:
        self._interval = 1.0 / rate if rate > 0 else 0.0
        self._next = 0.0
        self._lock = threading.Lock()
        self.stop = threading.Event()

    def wait(self) -> None:
        """Block until this request's turn. Raises `Halted` once `stop` is set."""
        with self._lock:
            start = max(self._next, time.monotonic())
            self._next = start + self._interval
        self.sleep(start - time.monotonic())

    def hold(self, seconds: float) -> None:
        """Let no request start before `seconds` from now."""
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)

    def sleep(self, seconds: float) -> None:
        """Sleep unless or until `stop` is set; then raise `Halted`."""
        if self.stop.wait(max(seconds, 0.0)):
            raise _stopped()


@dataclass(frozen=True)
class Part:
    """An unfinished file and what is known of the version its bytes belong to."""

    path: Path
    url: str
    trusted: bool
    """A digest of the whole file is known, so joining bytes of two versions would be noticed."""

    @property
    def note(self) -> Path:
        return self.path.with_name(self.path.name + ".json")

    def position(self) -> tuple[int, str | None]:
        """Bytes that may be kept and the validator to send with `If-Range`; `(0, None)` where nothing
        may be kept.
        """
        try:
            size = self.path.stat().st_size
            note = json.loads(self.note.read_text(encoding="utf-8"))
            same, validator = note["url"] == self.url, note["validator"]
        except (OSError, ValueError, KeyError, TypeError):
            return 0, None
        return (size, validator) if size and same and (validator or self.trusted) else (0, None)

    def remember(self, response: httpx.Response) -> None:
        etag = response.headers.get("ETag", "")
        validator = etag if etag.startswith('"') else response.headers.get("Last-Modified")
        write_json({"url": self.url, "validator": validator}, self.note)

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)


def retry_after(value: str | None) -> float | None:
    """Seconds that a `Retry-After` header asks for (RFC 9110 §10.2.3: a number or an HTTP date); None
    where it says nothing.
    """
    if value is None:
        return None
    if re.fullmatch(r"\s*\d+\s*", value):
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return None


def _range(response: httpx.Response) -> tuple[int, int | None]:
    """First byte and total size that a 206 answer says it carries."""
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    return (int(match[1]), None if match[2] == "*" else int(match[2])) if match else (-1, None)


def _length(response: httpx.Response) -> int | None:
    value = response.headers.get("Content-Length", "")
    return int(value) if value.isdigit() else None


def _attempt(http: httpx.Client, part: Part, pacer: Pacer, received: Callable[[int], None]) -> int | None:
    """One request for the rest of `part`; returns the total size that the server stated, None where it
    stated none.
    """
    start, validator = part.position()
    headers = {"Range": f"bytes={start}-"} if start else {}
    if start and validator:
        headers["If-Range"] = validator
    pacer.wait()
    with http.stream("GET", part.url, headers=headers) as response:
        if response.status_code == 416 and start:
            total = response.headers.get("Content-Range", "").rpartition("/")[2]
            if total == str(start):
                return start
            part.discard()
            raise httpx.RemoteProtocolError("the kept bytes do not fit the file; starting again")
        response.raise_for_status()
        first, total_size = _range(response) if response.status_code == 206 else (0, _length(response))
        if response.status_code == 206 and (not start or first != start):
            part.discard()
            raise httpx.RemoteProtocolError(
                f"asked for bytes from {start}, got them from {first}; starting again"
            )
        if first == 0:
            part.discard()
            part.remember(response)
        with part.path.open("ab") as out:
            for chunk in response.iter_raw():
                out.write(chunk)
                received(first := first + len(chunk))
                if pacer.stop.is_set():
                    raise _stopped()
    if total_size is not None and part.path.stat().st_size != total_size:
        raise httpx.RemoteProtocolError(f"{total_size} bytes were announced, {part.path.stat().st_size} came")
    return total_size


def fetch_part(
    http: httpx.Client,
    part: Part,
    policy: Policy,
    pacer: Pacer,
    received: Callable[[int], None] = lambda at: None,
) -> None:
    """Bring `part` to its full length. `received(position)` is told how many bytes of the file are there.

    Raises `Refused` for an answer that will not change, `FetchError` once `policy.retries` attempts in a row
    brought nothing new, `Halted` if the disk is full, the server asks for too long a pause or `pacer.stop` is
    set.
    """
    fruitless, reached = 0, part.position()[0]

    def advanced(position: int) -> None:
        nonlocal fruitless, reached
        if position > reached:
            fruitless, reached = 0, position
        received(position)

    while True:
        wait: float | None = None
        try:
            _attempt(http, part, pacer, advanced)
            return
        except httpx.HTTPStatusError as error:
            status = error.response.status_code
            if status not in RETRIED:
                raise Refused(f"{part.url}: HTTP {status} {error.response.reason_phrase}".rstrip()) from None
            wait = retry_after(error.response.headers.get("Retry-After"))
            reason = f"HTTP {status}"
        except (httpx.UnsupportedProtocol, httpx.InvalidURL, httpx.TooManyRedirects) as error:
            raise Refused(f"{part.url}: {error}") from None
        except httpx.TransportError as error:
            reason = str(error) or type(error).__name__
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise FetchError(
                    f"{part.path}: cannot write ({error.strerror}); {reached} bytes are there"
                ) from None
            raise Halted(
                f"{part.path}: the disk is full after {reached} bytes; free some space and run the same "
                "command again"
            ) from None
        fruitless += 1
        if fruitless > policy.retries:
            raise FetchError(
                f"{part.url}: gave up after {fruitless} attempts without a new byte (last: {reason}; "
                f"{reached} bytes are kept); "
                "run the same command later to continue"
            )
        if wait is not None and wait > policy.longest_wait:
            raise Halted(
                f"{part.url}: the server asks to wait {wait:.0f} s, longer than {policy.longest_wait:.0f} s; "
                "run the same command later"
            )
        if wait is not None:
            pacer.hold(wait)
        else:
            pacer.sleep(
                policy.backoff * 2 ** (fruitless - 1) * random.uniform(0.5, 1.0) if fruitless else 0.0
            )
