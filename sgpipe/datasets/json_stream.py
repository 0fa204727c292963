"""JSON files of any size, value by value: at most a few megabytes of text and one value are held.

The standard library's scanner finds where a value ends. What is no JSON ends in one line with file and place; what JSON can write
and no table can hold (half of a surrogate pair, bytes that are no UTF-8, NaN) becomes a value that no field takes, so that it costs
the record or the item that has it.

Lists of structs are decoded a few megabytes at a time by msgspec: a guess says where the last whole element ends. Text that
begins at an element decodes exactly when it ends at one, too, since a cut elsewhere leaves a bracket or a string open; what does
not decode is scanned element by element.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import Any, Final, Literal, Self

import msgspec

from sgpipe.datasets.base import Progress
from sgpipe.errors import DataError

CHUNK: Final = 1 << 22
"""Characters that are read at once."""
LARGEST: Final = 1 << 28
"""A value of more characters is taken for damage."""
_SPACE = re.compile(r"[ \t\r\n]*")
_MAY_BE_NO_TEXT = re.compile(r"[\ud800-\udfff]|\\u[dD][89a-fA-F]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_FIRST_KEY = re.compile(r'\{[ \t\r\n]*"[^"\\]*"')
_LONGEST_TOKEN: Final = 16
"""More characters than any escape or literal has: a fault so near the end of what was read may be one that reading on mends."""


class NoText:
    """In place of a string with half of a surrogate pair, or of bytes that are no UTF-8."""

    def __repr__(self) -> str:
        return "(no Unicode)"


class NoNumber:
    """In place of NaN and of infinities."""

    def __repr__(self) -> str:
        return "(no finite number)"


class JsonStream:
    """A file that holds one JSON object or list; `members` and `elements` go through it once, in its order."""

    def __init__(self, path: Path, progress: Progress = lambda path, done: None) -> None:
        self.path = path
        self._progress = progress
        self._text, self._at, self._ended = "", 0, False
        self._scanned = 0
        self._place = "at its start"
        self._decoder = json.JSONDecoder(parse_constant=lambda name: NoNumber())

    def __enter__(self) -> Self:
        try:
            self._bytes = self.path.open("rb")
        except OSError as error:
            raise DataError(f"{self.path}: cannot be opened ({error.strerror}); get the file again") from None
        self._file = TextIOWrapper(self._bytes, encoding="utf-8-sig", errors="surrogateescape")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def kind(self) -> Literal["{", "["]:
        """Whether the file holds an object or a list. Raises `DataError` for anything else."""
        found = self._peek()
        if found not in ("{", "["):
            said = f"it begins with {self._text[self._at : self._at + 24]!r}" if found else "the file is empty"
            raise DataError(f"{self.path}: not a JSON object or list: {said}; get the file again")
        return found  # type: ignore[return-value]

    def members(self) -> Iterator[Any]:
        """Keys of the file's object, `NoText` among them. Between two, the caller takes the `value`, or its `elements`."""
        if self.kind() != "{":
            raise DataError(f"{self.path}: a JSON object is needed, the file holds a list; get the file again")
        yield from self._sequence("}", self._key)
        self._end()

    def list(self) -> Iterator[Any]:
        """Elements of the file's list."""
        if self.kind() != "[":
            raise DataError(f"{self.path}: a JSON list is needed, the file holds an object; get the file again")
        yield from self.elements()
        self._end()

    def elements(self, kind: Any = Any) -> Iterator[Any]:
        """Elements of the list that comes next; those of a struct `kind` may come as such, others as plain values."""
        if self._peek() != "[":
            raise DataError(f"{self.path}: {self._place}: a list is needed here; the file is of another layout")
        decoder = msgspec.json.Decoder(list[kind])
        yield from self._sequence("]", self.value, None if kind is Any else lambda: self._run(decoder))

    def value(self) -> Any:
        """The value that comes next."""
        self._peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                cut = error.pos >= len(self._text) - _LONGEST_TOKEN or "Unterminated" in error.msg
                if not cut or len(self._text) > LARGEST or not self._more():
                    raise self._damaged("the file ends inside a value" if cut and self._ended else error.msg) from None
            except RecursionError:
                raise self._damaged("brackets are nested too deeply") from None
            except ValueError as error:  # int() refuses thousands of digits
                raise self._damaged(str(error)) from None
            else:
                if end < len(self._text) or not self._more():
                    break
        text = self._text[self._at : end]
        odd = not (text.isascii() and "\\u" not in text) and _MAY_BE_NO_TEXT.search(text)
        self._at = end
        return _marked(value) if odd else value

    def _run(self, decoder: msgspec.json.Decoder) -> Sequence[Any]:
        """Elements from here to the last that certainly ends in the text that was read; none where they do not decode.

        A cut is guessed before an object that begins with the same key as the one here.
        """
        first = _FIRST_KEY.match(self._text, self._at)
        if first is None or self._at < self._scanned:
            return []
        cut = self._text.rfind(first[0], self._at + 1)
        end = self._text.rfind("}", self._at, max(cut, 0)) + 1
        if not end:
            return []
        try:
            found: Sequence[Any] = decoder.decode(f"[{self._text[self._at : end]}]")
        except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
            self._scanned = end
            return []
        self._at = end
        return found

    def _sequence(self, closing: str, take: Callable[[], Any], run: Callable[[], Sequence[Any]] | None = None) -> Iterator[Any]:
        self._at += 1
        count = 0
        while True:
            found = self._peek()
            if found == closing and count == 0:
                break
            if count and found in (closing, ","):
                self._at += 1
                if found == closing:
                    return
            elif count:
                raise self._damaged("cut short" if not found else f"a comma or {closing!r} is needed before {found!r}")
            self._place = f"after entry {count}" if count else "in the first entry"
            if run is not None and self._peek() and (several := run()):
                yield from several
                count += len(several)
                continue
            yield take()
            count += 1
        self._at += 1

    def _key(self) -> Any:
        if self._peek() != '"':
            raise self._damaged("a key in quotes is needed")
        key = self.value()
        if self._peek() != ":":
            raise self._damaged(f"a colon is needed after key {key!r}")
        self._at += 1
        return key

    def _end(self) -> None:
        if self._peek():
            raise DataError(f"{self.path}: text follows the end of the JSON; the file is damaged, get it again")
        self._progress(self.path, self.path.stat().st_size)

    def _peek(self) -> str:
        """The next character that is no white space, at which the position is then; empty at the end of the file."""
        while True:
            self._at = _SPACE.match(self._text, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._text) or not self._more():
                return self._text[self._at : self._at + 1]

    def _more(self) -> bool:
        """Read on; what is done with is let go. False at the end of the file."""
        more = "" if self._ended else self._file.read(CHUNK)
        self._ended = not more
        if more:
            self._scanned = max(0, self._scanned - self._at)
            self._text, self._at = self._text[self._at :] + more, 0
            self._progress(self.path, self._bytes.tell())
        return bool(more)

    def _damaged(self, what: str) -> DataError:
        return DataError(f"{self.path}: {self._place}: {what}; the file is damaged or cut short, get it again")


def _marked(value: Any) -> Any:
    """`value` with `NoText` in place of the strings that are no Unicode; in keys, U+FFFD stands for what is none."""
    if isinstance(value, str):
        return NoText() if _SURROGATE.search(value) else value
    if isinstance(value, dict):
        return {_SURROGATE.sub("\ufffd", key): _marked(item) for key, item in value.items()}
    return [_marked(item) for item in value] if isinstance(value, list) else value
