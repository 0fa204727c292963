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
from sgpipe.datasets.visual_genome.spans import exact_spans, guessed_spans, list_start
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
    merged_object_ids: list[Id] | None = None
    names: list[str] | None = None
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
_NO_TEXT = "bytes that are no UTF-8, or half a surrogate pair"


def decode(text: bytes | memoryview, kind: type[R], id_key: str) -> Decoded[R]:
    """Records of a JSON list; one with text that is no Unicode is invalid. Raises `Malformed` where the text is no JSON list."""
    try:
        str(text, "utf-8")  # strings of fields that no struct names are skipped unread
        records = _DECODERS[kind].decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _salvage(text, kind, id_key)
    except RecursionError as error:
        raise Malformed(str(error)) from None
    if MISSING in map(attrgetter(id_key), records):
        return _salvage(text, kind, id_key)
    return Decoded(records, list(range(len(records))), len(records))


def raw_records(text: bytes | memoryview) -> list[Raw]:
    """The elements of a JSON list, undecoded; escapes of half a surrogate pair become bytes that are no UTF-8."""
    try:
        return _RAWS.decode(text)
    except msgspec.DecodeError:
        return _RAWS.decode(_ESCAPES.sub(lambda found: b"\xff" * 6 if found["lone"] else found[0], bytes(text)))


def _decode_one(raw: Raw, kind: type[T]) -> T:
    """`decode_whole` that refuses text which is no Unicode in any field."""
    if not _is_text(raw):
        raise msgspec.ValidationError(_NO_TEXT)
    return decode_whole(raw, kind)


def _is_text(raw: bytes | Raw) -> bool:
    try:
        bytes(raw).decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _salvage(text: bytes | memoryview, kind: type[R], id_key: str) -> Decoded[R]:
    try:
        raws = raw_records(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise Malformed(str(error)) from None
    found: Decoded[R] = Decoded([], [], len(raws))
    for index, raw in enumerate(raws):
        try:
            record = _decode_one(raw, kind)
            if getattr(record, id_key) == MISSING:
                raise msgspec.ValidationError(f"Object missing required field `{id_key}`")
        except msgspec.ValidationError as error:
            saved = _save_items(raw, kind, id_key, index, str(error), found.invalid)
            if saved is None:
                continue
            record = saved
        found.records.append(record)
        found.index.append(index)
    return found


def _as_id(raw: Raw) -> int | None:
    try:
        return _decode_one(raw, Id)
    except msgspec.ValidationError:
        return None


def _excerpt(error: str, raw: bytes) -> str:
    return f"{error}: {raw[:300].decode('utf-8', 'replace')}"


def _save_items(raw: Raw, kind: type[R], id_key: str, index: int, error: str, invalid: list[Invalid]) -> R | None:
    """The record with its sound items, or `None`; everything left out is added to `invalid`, one entry per item."""
    list_key = _LISTS[kind]
    try:
        loose = msgspec.json.decode(raw, type=_Loose)
    except msgspec.ValidationError:
        loose = None
    items = getattr(loose, list_key) if loose is not None and list_key is not None else None
    image_id = _as_id(getattr(loose, id_key)) if loose is not None else None
    if items is None:
        invalid.append(Invalid(index, image_id, None, _excerpt(error, bytes(raw))))
        return None
    rest = bytes(raw)
    for item in items:
        rest = rest.replace(bytes(item), b"", 1)
    usable = image_id is not None and _is_text(rest)
    item_kind: Any = ObjectRecord if kind is ObjectsRecord else RelationshipRecord
    sound = []
    for item in items:
        try:
            value = _decode_one(item, item_kind)
            if usable:
                sound.append(value)
                continue
            problem = error
        except msgspec.ValidationError as item_error:
            problem = str(item_error)
        item_id = None
        if kind is RelationshipsRecord:
            try:
                given = msgspec.json.decode(item, type=_LooseItem)
                item_id = _as_id(given.id if id_key == "id" else given.relationship_id)
            except msgspec.ValidationError:
                item_id = None
        invalid.append(Invalid(index, image_id, item_id, _excerpt(problem, bytes(item))))
    if not usable:
        if not items:
            invalid.append(Invalid(index, image_id, None, _excerpt(error, bytes(raw))))
        return None
    return kind(**{list_key: sound, id_key: image_id})  # type: ignore[arg-type]


def first_record(path: Path) -> dict[str, Raw]:
    """The first top-level record with its values undecoded, for telling layouts apart."""
    span = next(exact_spans(path, list_start(path), 1))
    try:
        record = raw_records(span.read())[0]
    except (msgspec.DecodeError, RecursionError, IndexError) as error:
        raise DataError(f"{path}: record 0 cannot be read: {error}; the file is damaged or cut short, get it again") from None
    try:
        return msgspec.json.decode(bytes(record).decode("utf-8", "replace"), type=dict[str, Raw])
    except msgspec.ValidationError as error:
        raise DataError(f"{path}: record 0 is no object with named values: {error}; this is no Visual Genome file") from None


def id_key(path: Path, list_key: str | None) -> str:
    """The name of the image id in a file of records, from its first one. Raises `DataError` if the layout is unknown."""
    record = first_record(path)
    keys = {"image_id", "id"} & set(record)
    if not keys or (list_key is not None and list_key not in record) or (list_key is None and "width" not in record):
        need = "`image_id` (v1.2, v1.4) or `id` (v1.0)" + (f" and `{list_key}`" if list_key else ", `width` and `height`")
        raise DataError(f"{path}: unknown layout: record 0 has the keys {', '.join(sorted(map(str, record)))}; a record has {need}")
    return "image_id" if "image_id" in keys else "id"


def detect_release(root: Path) -> Release:
    """The layout of the three files in `root`, from their content. Raises `DataError` if it is unknown or they disagree."""
    found = {
        name: id_key(root / name, key)
        for name, key in (("image_data.json", None), ("objects.json", "objects"), ("relationships.json", "relationships"))
    }
    if len(set(found.values())) > 1:
        shown = ", ".join(f"{name} has `{key}`" for name, key in found.items())
        raise DataError(f"{root}: files of different releases: {shown}; object ids differ between v1.0 and the later ones")
    if found["objects.json"] == "id":
        return "v1.0"
    span = next(guessed_spans(root / "objects.json", list_start(root / "objects.json")))
    return "v1.4" if b'"merged_object_ids"' in bytes(span.read()) else "v1.2"
