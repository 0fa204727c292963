"""Visual Genome's JSON records as typed structs, in the layouts of releases v1.4, v1.2 and v1.0.

The layouts differ in names only: v1.0 says `id` where the later ones say `image_id`, `object_id` and `relationship_id`; an
endpoint carries `name` or `names`; v1.4 objects list the ids that were merged into them. One struct reads them all.
"""

import re
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import msgspec
from msgspec import Raw, Struct

from sgpipe.datasets.base import MISSING, Id, Invalid, Pixels, decode_whole
from sgpipe.datasets.visual_genome.spans import Span, exact_spans, guessed_spans, list_start
from sgpipe.errors import DataError

Release = Literal["v1.4", "v1.2", "v1.0"]


class ImageRecord(Struct, gc=False):
    """One record of image_data.json; sizes in pixels."""

    width: Pixels
    height: Pixels
    url: str | None = None
    image_id: Id = MISSING
    id: Id = MISSING


class ObjectRecord(Struct, gc=False, kw_only=True):
    """An object, or an endpoint of a relationship, with its box in pixels. Fields stand in the order of the files: faster."""

    name: str | None = None
    h: float
    object_id: Id = MISSING
    merged_object_ids: tuple[Id, ...] | None = None
    names: tuple[str, ...] | None = None
    w: float
    y: float
    x: float
    id: Id = MISSING


class RelationshipRecord(Struct, gc=False, kw_only=True):
    """One annotated relationship."""

    predicate: str
    object: ObjectRecord
    relationship_id: Id = MISSING
    id: Id = MISSING
    subject: ObjectRecord


class ObjectsRecord(Struct):
    """One record of objects.json: all objects of an image."""

    objects: list[ObjectRecord]
    image_id: Id = MISSING
    id: Id = MISSING


class RelationshipsRecord(Struct):
    """One record of relationships.json: all relationships of an image."""

    relationships: list[RelationshipRecord]
    image_id: Id = MISSING
    id: Id = MISSING


_LOOKED_AT = 4 << 20
"""Bytes of objects.json that tell v1.4 from v1.2."""
_NULL = Raw(b"null")


class _Loose(Struct):
    """The same two records with nothing checked but the list, to save what is sound in a damaged one."""

    objects: list[Raw] | None = None
    relationships: list[Raw] | None = None
    image_id: Raw = _NULL
    id: Raw = _NULL


class _LooseItem(Struct):
    relationship_id: Raw = _NULL
    id: Raw = _NULL


class Malformed(Exception):
    """A span is no JSON list of records: either it was cut wrongly or the file is damaged there."""

    span: Span


T = TypeVar("T")
R = TypeVar("R", ImageRecord, ObjectsRecord, RelationshipsRecord)


@dataclass
class Decoded(Generic[R]):
    """Sound records of a span with their index in it, the count of all records, and what had to be left out."""

    records: list[R]
    index: list[int]
    count: int
    invalid: list[Invalid] = field(default_factory=list)


_LISTS = {ImageRecord: None, ObjectsRecord: "objects", RelationshipsRecord: "relationships"}
_DECODERS = {kind: msgspec.json.Decoder(list[kind]) for kind in _LISTS}  # type: ignore[valid-type]
_RAWS = msgspec.json.Decoder(list[Raw])
_ESCAPES = re.compile(rb"\\(?:u[dD][89abAB]..\\u[dD][c-fC-F]..|(?P<lone>u[dD][89a-fA-F][0-9a-fA-F]{2})|.)", re.DOTALL)


def decode(text: bytes | bytearray, kind: type[R], id_key: str) -> Decoded[R]:
    """Records of a JSON list; one with text that is no Unicode is invalid. Raises `Malformed` where the text is no JSON list."""
    try:
        if not text.isascii():
            str(text, "utf-8")  # strings of fields that no struct names are skipped unread
        records = _DECODERS[kind].decode(text)
        if MISSING not in map(attrgetter(id_key), records):
            return Decoded(records, list(range(len(records))), len(records))
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass
    except RecursionError as error:
        raise Malformed(str(error)) from None
    try:
        raws = raw_records(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise Malformed(str(error)) from None
    found: Decoded[R] = Decoded([], [], len(raws))
    for index, raw in enumerate(raws):
        record = _salvaged(raw, kind, id_key, index, found.invalid)
        if record is not None:
            found.records.append(record)
            found.index.append(index)
    return found


def raw_records(text: bytes | bytearray) -> list[Raw]:
    """The elements of a JSON list, undecoded; escapes of half a surrogate pair become bytes that are no UTF-8."""
    try:
        return _RAWS.decode(text)
    except msgspec.DecodeError:
        return _RAWS.decode(_ESCAPES.sub(lambda found: b"\xff" * 6 if found["lone"] else found[0], bytes(text)))


def _decode_one(raw: Raw, kind: type[T]) -> T:
    """`decode_whole` that refuses text which is no Unicode in any field."""
    if not _is_text(bytes(raw)):
        raise msgspec.ValidationError("bytes that are no UTF-8, or half a surrogate pair")
    return decode_whole(raw, kind)


def _is_text(raw: bytes) -> bool:
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _id_in(raw: Raw, kind: type[_Loose | _LooseItem], key: str) -> int | None:
    try:
        return _decode_one(getattr(msgspec.json.decode(raw, type=kind), key), Id)
    except msgspec.ValidationError:
        return None


def _salvaged(raw: Raw, kind: type[R], id_key: str, index: int, invalid: list[Invalid]) -> R | None:
    """The record, or what is sound of its items, or `None`; everything left out is added to `invalid`, one entry per item."""
    try:
        record = _decode_one(raw, kind)
        if getattr(record, id_key) != MISSING:
            return record
        error = f"Object missing required field `{id_key}`"
    except msgspec.ValidationError as fault:
        error = str(fault)
    image_id = _id_in(raw, _Loose, id_key)

    def reject(part: Raw, problem: str, item_id: int | None = None) -> None:
        invalid.append(Invalid(index, image_id, item_id, f"{problem}: {bytes(part)[:300].decode('utf-8', 'replace')}"))

    list_key = _LISTS[kind]
    try:
        items = getattr(msgspec.json.decode(raw, type=_Loose), list_key) if list_key is not None else None
    except msgspec.ValidationError:
        items = None
    if items is None:
        reject(raw, error)
        return None
    rest = bytes(raw)
    for item in items:
        rest = rest.replace(bytes(item), b"", 1)
    usable = image_id is not None and _is_text(rest)
    if not usable and not items:
        reject(raw, error)
        return None
    relations = kind is RelationshipsRecord
    item_kind: Any = RelationshipRecord if relations else ObjectRecord
    sound = []
    for item in items:
        try:
            value, problem = _decode_one(item, item_kind), error
        except msgspec.ValidationError as fault:
            value, problem = None, str(fault)
        if usable and value is not None:
            sound.append(value)
            continue
        reject(item, problem, _id_in(item, _LooseItem, "id" if id_key == "id" else "relationship_id") if relations else None)
    return kind(**{list_key: sound, id_key: image_id}) if usable else None  # type: ignore[arg-type]


def id_key(path: Path, list_key: str | None) -> str:
    """The name of the image id in a file of records, from its first one. Raises `DataError` if the layout is unknown."""
    span = next(exact_spans(path, list_start(path), 1))
    try:
        first = bytes(raw_records(span.read())[0]).decode("utf-8", "replace")
        record = msgspec.json.decode(first, type=dict[str, Raw])
    except msgspec.ValidationError as error:
        raise DataError(f"{path}: record 0 is no object with named values: {error}; this is no Visual Genome file") from None
    except (msgspec.DecodeError, RecursionError, IndexError) as error:
        raise DataError(f"{path}: record 0 cannot be read: {error}; the file is damaged or cut short, get it again") from None
    keys = {"image_id", "id"} & set(record)
    if not keys or (list_key or "width") not in record:
        need = "`image_id` (v1.2, v1.4) or `id` (v1.0)" + (f" and `{list_key}`" if list_key else ", `width` and `height`")
        raise DataError(f"{path}: unknown layout: record 0 has the keys {', '.join(sorted(map(str, record)))}; a record has {need}")
    return "image_id" if "image_id" in keys else "id"


def detect_release(root: Path) -> Release:
    """The layout of the three files in `root`, from their content. Raises `DataError` if it is unknown or they disagree."""
    lists = {"image_data.json": None, "objects.json": "objects", "relationships.json": "relationships"}
    found = {name: id_key(root / name, key) for name, key in lists.items()}
    if len(set(found.values())) > 1:
        shown = ", ".join(f"{name} has `{key}`" for name, key in found.items())
        raise DataError(f"{root}: files of different releases: {shown}; object ids differ between v1.0 and the later ones")
    if found["objects.json"] == "id":
        return "v1.0"
    return "v1.4" if _lists_merged(root / "objects.json") else "v1.2"


def _lists_merged(path: Path) -> bool:
    return b'"merged_object_ids"' in next(guessed_spans(path, list_start(path), _LOOKED_AT)).read()


def older_objects(root: Path, name: str, release: Release) -> Path | None:
    """The file of v1.2's objects beside v1.4's, if it is there. Raises `DataError` where these do not go together."""
    path = root / name
    if not path.is_file():
        return None
    if release != "v1.4":
        raise DataError(f"{path}: it goes with files of v1.4, those beside it are of {release}; move it away")
    if id_key(path, "objects") == "id" or _lists_merged(path):
        found = "v1.4" if _lists_merged(path) else "v1.0, whose ids are others"
        raise DataError(f"{path}: objects of v1.2 are needed, these are of {found}; get the right file or move it away")
    return path
