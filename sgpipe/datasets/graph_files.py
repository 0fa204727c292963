"""Scene graphs beside one's own images: JSON or CSV of this project's, and what two other tools write.

| file | holds |
|---|---|
| `graphs.json` | a list of `{"image": "a.jpg", "objects": ["dog", {"name": "cat", "box": [x, y, w, h]}], "relations": [[0, "on", 1]]}`; in place of the last two `"triples": [["dog", "on", "cat"]]` |
| `graphs.csv` | a triple a line: image, subject, predicate, object; perhaps subject_id, object_id, sx, sy, sw, sh, ox, oy, ow, oh |
| `graphs.txt` | image, tab, and FactualSceneGraph's text `( dog , on , cat ) , ( cat , is , black )` |
| `custom_prediction.json`, `custom_data_info.json` | detections by SGG-Benchmark and its parent, Scene-Graph-Benchmark |
"""  # noqa: E501

import csv
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct

from sgpipe.datasets.base import Finite, Invalid
from sgpipe.datasets.config import Folder as Options
from sgpipe.datasets.json_stream import JsonStream
from sgpipe.datasets.records import read_item
from sgpipe.errors import DataError

Box = tuple[Finite, Finite, Finite, Finite]
"""x, y, w, h in pixels."""
NAMED: Final = ("image", "subject", "predicate", "object")
BOXED: Final = (("sx", "sy", "sw", "sh"), ("ox", "oy", "ow", "oh"))


class Thing(Struct):
    """An object; without a box it may be anywhere."""

    name: str
    box: Box | None = None
    attributes: list[str] = []


class ImageGraph(Struct):
    """An image by the name of its file, and its graph; what could not be read of it stands as `Invalid`."""

    number: int
    image: str
    objects: list[Thing | Invalid]
    relations: list[tuple[int, str, int] | Invalid]


Reader = Callable[[Path, Options], Iterator[ImageGraph | Invalid]]


class _Written(Struct, forbid_unknown_fields=True):
    image: str
    objects: list[Any] = []
    relations: list[Any] = []
    triples: list[Any] = []


def read_json(path: Path, options: Options) -> Iterator[ImageGraph | Invalid]:
    """`graphs.json`."""
    with JsonStream(path) as stream:
        for number, value in enumerate(stream.list()):
            found = read_item(value, _Written, number, None)
            if isinstance(found, _Written) and found.triples and (found.objects or found.relations):
                found = Invalid(number, None, None, f"{found.image}: give `triples`, or `objects` and `relations`, not both")
            if isinstance(found, Invalid):
                yield found
                continue
            written = [{"name": each} if isinstance(each, str) else each for each in found.objects]
            graph = ImageGraph(number, found.image, [read_item(each, Thing, number, None) for each in written], [])
            for n, each in enumerate(found.relations):
                graph.relations.append(read_item(each, tuple[int, str, int], number, None, n))
            _add_triples(graph, [read_item(each, tuple[str, str, str], number, None, n) for n, each in enumerate(found.triples)])
            yield graph


def _add_triples(graph: ImageGraph, triples: list[Any]) -> None:
    """Triples by name: a name is one object throughout a graph."""
    numbers = {each.name: n for n, each in enumerate(graph.objects) if isinstance(each, Thing)}
    for triple in triples:
        if isinstance(triple, Invalid):
            graph.relations.append(triple)
            continue
        for name in (triple[0], triple[2]):
            if name not in numbers:
                numbers[name] = len(graph.objects)
                graph.objects.append(Thing(name))
        graph.relations.append((numbers[triple[0]], triple[1], numbers[triple[2]]))


def read_csv(path: Path, options: Options) -> Iterator[ImageGraph | Invalid]:
    """`graphs.csv`; the lines of an image need not follow one another."""
    graphs: dict[str, ImageGraph] = {}
    places: dict[tuple[str, str], tuple[int, int]] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = csv.DictReader(file, strict=True)
            columns = lines.fieldnames or []
            if missing := [name for name in NAMED if name not in columns]:
                raise DataError(
                    f"{path}: no column {missing[0]!r} in the first line ({', '.join(columns)}); needed: {', '.join(NAMED)}"
                )
            for line in lines:
                image = (line["image"] or "").strip()
                if not image:
                    yield Invalid(lines.line_num, None, None, f"line {lines.line_num} names no image")
                    continue
                graph = graphs.setdefault(image, ImageGraph(len(graphs), image, [], []))
                graph.relations.append(_line(line, lines.line_num, graph, places))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: no UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from None
    except csv.Error as error:
        raise DataError(f"{path}: line {lines.line_num}: no CSV: {error}") from None
    yield from graphs.values()


def _line(line: dict[str, Any], number: int, graph: ImageGraph, places: dict) -> tuple[int, str, int] | Invalid:
    ends, place = [], len(graph.relations)
    for side, columns in zip(("subject", "object"), BOXED, strict=True):
        name, numbers = (line[side] or "").strip(), [(line.get(column) or "").strip() for column in columns]
        box: Any = None
        if any(numbers):
            try:
                box = msgspec.convert([float(each) for each in numbers], Box)
            except (ValueError, msgspec.ValidationError):
                return Invalid(number, None, place, f"line {number}: {', '.join(columns)}: got {numbers}; four numbers or none")
        key = graph.image, (line.get(f"{side}_id") or name).strip()
        if key not in places:
            places[key] = len(graph.objects), number
            graph.objects.append(Thing(name, box))
        thing = graph.objects[places[key][0]]
        assert isinstance(thing, Thing)
        thing.box = thing.box or box
        if thing.name != name or (box and thing.box != box):
            said = f"{side} {key[1]!r} has another name or box in line {places[key][1]}"
            return Invalid(number, None, place, f"line {number}: {said}; tell objects of a name apart by {side}_id")
        ends.append(places[key][0])
    return ends[0], (line["predicate"] or "").strip(), ends[1]


_FACT = re.compile(r"\(([^()]*)\)")
_MARKS = re.compile(r"\b(?:p?v):|:\d+\b")


def read_factual(path: Path, options: Options) -> Iterator[ImageGraph | Invalid]:
    """`graphs.txt`: lines of an image's name, a tab and FactualSceneGraph's text (Li et al. 2023).

    A fact with `is` is an attribute or a number and no relation; a number after a name (`monkey:1`) tells objects apart, `v:` and
    `pv:` mark verbs.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: no UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from None
    for number, line in enumerate(lines, 1):
        image, tab, text = line.partition("\t")
        if not line.strip():
            continue
        if not tab or not image.strip():
            yield Invalid(number, None, None, f"line {number}: an image's name, a tab and a graph are needed, got {line[:80]!r}")
            continue
        graph, numbers = ImageGraph(number, image.strip(), [], []), dict[str, int]()
        for n, fact in enumerate(_FACT.findall(text)):
            words = [word.strip() for word in fact.split(",")]
            if len(words) not in (1, 3) or not all(words):
                graph.relations.append(Invalid(number, None, n, f"line {number}: ({fact}) is no fact of three words"))
                continue
            attribute = words[1:2] == ["is"]
            for name in words[:1] if attribute else words[::2]:
                if name not in numbers:
                    numbers[name] = len(graph.objects)
                    graph.objects.append(Thing(_MARKS.sub("", name)))
            subject = graph.objects[numbers[words[0]]]
            assert isinstance(subject, Thing)
            if attribute:
                subject.attributes = [*subject.attributes, words[2]]
            elif len(words) == 3:
                graph.relations.append((numbers[words[0]], _MARKS.sub("", words[1]), numbers[words[2]]))
        yield graph


class _Info(Struct):
    idx_to_files: list[str]
    ind_to_classes: list[str]
    ind_to_predicates: list[str]


class _Detected(Struct):
    bbox: list[Box]
    bbox_labels: list[int | str]
    rel_pairs: list[tuple[int, int]]
    rel_labels: list[int | str]
    rel_scores: list[Finite]


def read_detections(path: Path, options: Options) -> Iterator[ImageGraph | Invalid]:
    """`custom_prediction.json` beside `custom_data_info.json`: boxes by corners, pairs of boxes by falling score.

    Relations scored below `data.folder.min_score` are left out, and boxes that no other names.
    """
    beside = path.with_name("custom_data_info.json")
    try:
        info = msgspec.json.decode(beside.read_bytes(), type=_Info)
    except OSError:
        raise DataError(f"{beside}: no such file; it names the images, classes and predicates of {path.name}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{beside}: {error}; get it again from the tool that wrote {path.name}") from None
    with JsonStream(path) as stream:
        for number, key in enumerate(stream.members()):
            value = stream.value()
            found = read_item(value, _Detected, number, None)
            known = isinstance(key, str) and key.isdecimal() and int(key) < len(info.idx_to_files)
            if isinstance(found, _Detected) and not known:
                found = Invalid(
                    number, None, None, f"{key!r} is no number of an image; {beside.name} lists {len(info.idx_to_files)}"
                )
            if isinstance(found, Invalid):
                yield found
            else:
                yield _detected(number, Path(info.idx_to_files[int(key)]).name, found, info, options)


def _detected(number: int, image: str, found: _Detected, info: _Info, options: Options) -> ImageGraph:
    graph, numbers = ImageGraph(number, image, [], []), dict[int, int]()
    for n, (pair, label, score) in enumerate(zip(found.rel_pairs, found.rel_labels, found.rel_scores, strict=False)):
        if score < options.min_score:
            continue
        names = [_named(found.bbox_labels[end], info.ind_to_classes) if 0 <= end < len(found.bbox_labels) else None for end in pair]
        said = _named(label, info.ind_to_predicates)
        if None in names or said is None or max(pair) >= len(found.bbox):
            graph.relations.append(
                Invalid(number, None, n, f"{image}: relation {n} names no box, class or predicate: {pair} {label}")
            )
            continue
        for end, name in zip(pair, names, strict=True):
            if end not in numbers:
                x, y, right, foot = found.bbox[end]
                numbers[end] = len(graph.objects)
                graph.objects.append(Thing(str(name), (x, y, right - x, foot - y)))
        graph.relations.append((numbers[pair[0]], said, numbers[pair[1]]))
    return graph


def _named(label: int | str, names: list[str]) -> str | None:
    if isinstance(label, str):
        return label
    return names[label] if 0 <= label < len(names) else None


READERS: Final[dict[str, Reader]] = {
    "graphs.json": read_json,
    "graphs.csv": read_csv,
    "graphs.txt": read_factual,
    "custom_prediction.json": read_detections,
}
