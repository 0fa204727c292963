"""Cut a JSON file that holds one top-level list into spans of whole records, without reading it into memory.

A cut is guessed from the text around it. Decoding proves it: a span that starts at a true record boundary decodes exactly
when its end is one too, for anything cut inside a record leaves a bracket or a string open. So by induction a file whose
spans all decode was cut rightly. Where one does not, `exact_spans` follows strings and brackets from the last proven cut.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sgpipe.errors import DataError

SPAN_BYTES = 1 << 17
"""Aimed size of a span; the memory in use is a multiple of it, or of the largest single record."""

_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)|[\[\]{}]', re.DOTALL)
_SEPARATOR = re.compile(rb"\s*,\s*")
_FIRST_KEY = re.compile(rb'\s*\{\s*("(?:[^"\\]|\\.)*")\s*:', re.DOTALL)
_LOOK = 1 << 20
_WINDOW = 1 << 14
"""First looked at, for a cut; more where there is none."""
_LARGEST = 64 << 20
"""No record of an image is this large; a longer one has lost a quote or a bracket."""


@dataclass(frozen=True)
class Span:
    """Bytes `start:end` of a file, whole records separated by commas; `closed` unless the file ends without `]` after them."""

    path: Path
    start: int
    end: int
    closed: bool = True

    def read(self) -> bytearray:
        """The bytes, as a JSON list of their own."""
        text = bytearray(self.end - self.start + 2)
        text[0], text[-1] = b"[]"
        with self.path.open("rb") as stream:
            stream.seek(self.start)
            stream.readinto(memoryview(text)[1:-1])
        return text


def _read(path: Path, start: int, size: int) -> bytes:
    with path.open("rb") as stream:
        stream.seek(start)
        return stream.read(size)


def list_start(path: Path) -> int:
    """Offset of the first byte after the opening `[`. Raises `DataError` if the file is missing or holds no list of records."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; `sgpipe fetch visual-genome` gets it, or set data.root to the folder that has it")
    head = _read(path, 0, _LOOK)
    body = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not body:
        raise DataError(f"{path}: the file is empty; get it again")
    if not body.startswith(b"["):
        raise DataError(f"{path}: a list of records is needed, the file starts with {_shown(body)}")
    if body[1:].lstrip().startswith(b"]"):
        raise DataError(f"{path}: the list is empty; a damaged download? get the file again")
    return len(head) - len(body) + 1


def _shown(text: bytes) -> str:
    return repr(text[:20].decode("utf-8", "replace"))


def guessed_spans(path: Path, start: int, size: int = SPAN_BYTES) -> Iterator[Span]:
    """Spans from `start`, a true boundary; cuts lie before records that begin with the same key as the first one."""
    length = path.stat().st_size
    first = _FIRST_KEY.match(_read(path, start, _LOOK))
    if first is None:
        yield from exact_spans(path, start, size)
        return
    boundary = re.compile(rb"\}\s*,\s*(?=\{\s*" + re.escape(first[1]) + rb"\s*:)")
    with path.open("rb", buffering=0) as stream:
        while True:
            for look in range(start + size, length, _WINDOW - 256):
                if found := boundary.search(os.pread(stream.fileno(), _WINDOW, look)):
                    break
                if look + _WINDOW - 256 - start > 8 * max(size, _LOOK):
                    yield from exact_spans(path, start, size)
                    return
            else:
                tail = _read(path, start, length - start).rstrip()
                closed = tail.endswith(b"]")
                yield Span(path, start, start + len(tail) - closed, closed)
                return
            yield Span(path, start, look + found.start() + 1)
            start = look + found.end()


def exact_spans(path: Path, start: int, size: int = SPAN_BYTES) -> Iterator[Span]:
    """Spans from `start`, a true boundary, found by following every string and bracket; slower, right for any JSON text."""
    length = path.stat().st_size
    window = size + _WINDOW
    while True:
        text = _read(path, start, window)
        depth, cut, closing = 0, None, None
        for token in _TOKEN.finditer(text):
            kind = text[token.start()]
            if kind in b"[{":
                depth += 1
            elif kind in b"]}":
                depth -= 1
                if depth < 0:
                    closing = token.start() if kind in b"]" else None
                    window = length
                    break
                separator = _SEPARATOR.match(text, token.end()) if depth == 0 and token.end() >= size else None
                if separator and separator.end() < len(text):
                    cut = token.end(), separator.end()
                    break
        if closing is not None:
            rest = text[closing + 1 :] + _read(path, start + len(text), _LOOK)
            if rest.strip():
                raise DataError(f"{path}: byte {start + closing + 1}: text follows the end of the list: {_shown(rest.strip())}")
            yield Span(path, start, start + closing)
            return
        if cut is not None:
            yield Span(path, start, start + cut[0])
            start += cut[1]
            window = size + _WINDOW
        elif window >= min(length, _LARGEST) or start + len(text) >= length:
            yield Span(path, start, start + len(text), closed=False)
            return
        else:
            window *= 2
