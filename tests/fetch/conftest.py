"""A local HTTP server that misbehaves on demand."""

import hashlib
import io
import json
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import requests
from PIL import Image

from sgpipe.fetch.download import session


@dataclass
class Fault:
    """What one answer does wrong: a status in place of the file, a cut after `cut` bytes, flipped
    bytes, a Range ignored.
    """

    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    corrupt: bool = False
    ignore_range: bool = False
    wrong_range: bool = False


@dataclass
class Site:
    """Files by path, faults by path (one per request, then none), and every request seen."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    faults: dict[str, list[Fault]] = field(default_factory=dict)
    validator: str = "etag"
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)

    def ranges(self, path: str) -> list[str | None]:
        """The Range header of each GET of `path`."""
        return [headers.get("range") for method, p, headers in self.requests if p == path and method == "GET"]


def _handler(site: Site) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            site.requests.append((self.command, self.path, headers))
            queue = site.faults.get(self.path, [])
            fault = queue.pop(0) if queue and self.command == "GET" else Fault()
            body = site.files.get(self.path)
            status = fault.status or (404 if body is None else 200)
            if status != 200 or body is None:
                self._send(status, b"no", {"Content-Length": "2", **fault.headers})
                return
            etag = f'"{hashlib.md5(body).hexdigest()}"'
            extra = {
                "etag": {"ETag": etag},
                "weak": {"ETag": "W/" + etag},
                "date": {"Last-Modified": "Tue, 01 Aug 2017 10:00:00 GMT"},
                "none": {},
            }[site.validator]
            start = 0
            wanted = headers.get("range")
            fits = headers.get("if-range") in (None, *extra.values())
            if wanted and fits and not fault.ignore_range:
                start = int(wanted.removeprefix("bytes=").split("-")[0])
                if start >= len(body):
                    self._send(416, b"", {"Content-Range": f"bytes */{len(body)}", "Content-Length": "0"})
                    return
                status = 206
                shown = start + 1 if fault.wrong_range else start
                extra["Content-Range"] = f"bytes {shown}-{len(body) - 1}/{len(body)}"
            body = body[start:]
            if fault.corrupt:
                body = body[:-40] + bytes(b ^ 0xFF for b in body[-40:])
            extra["Content-Length"] = str(len(body))
            self._send(status, body if fault.cut is None else body[: fault.cut], extra)
            if fault.cut is not None:
                self.close_connection = True

        def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

    return Handler


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are part of the tests."""


@pytest.fixture
def site() -> Iterator[Site]:
    """A server on a free port of this machine, for one test."""
    site = Site()
    server = _Server(("127.0.0.1", 0), _handler(site))
    site.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield site
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="package", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    """Files are renamed into place without being synced first: a power failure is not tested."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("os.fsync", lambda descriptor: None)
        yield


@pytest.fixture(autouse=True)
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pauses that were asked for, in seconds; none is made."""
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    return pauses


@pytest.fixture
def http() -> Iterator[requests.Session]:
    """A session like that of the command."""
    with session(connections=4, retries=3) as opened:
        yield opened


def zipped(members: dict[str, bytes]) -> bytes:
    """A ZIP archive in memory."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def records(count: int) -> bytes:
    """A JSON list of `count` small objects."""
    return json.dumps([{"image_id": i, "objects": []} for i in range(count)]).encode()


def jpeg(width: int, height: int, shade: int) -> bytes:
    """A JPEG of one colour with a gradient, so that it has some bytes."""
    buffer = io.BytesIO()
    image = Image.new("RGB", (width, height), (shade, 90, 30))
    image.paste(Image.linear_gradient("L").resize((width, height // 2)), (0, 0))
    image.save(buffer, "JPEG")
    return buffer.getvalue()
