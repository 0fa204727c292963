"""A scene graph as a value: objects by name, triples (subject, predicate, object) by index; and how people write one.

`dog, left of, cat` is one triple, `;` separates several, and a name stands for one object throughout. JSON can name two objects
alike, and has names with a comma or semicolon: `{"objects": ["dog", "cat"], "triples": [[0, "left of", 1]]}`; it may give
`"boxes": [[x, y, width, height], null]` as well, in fractions of the image.
"""

import difflib
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import msgspec

from sgpipe.errors import DataError
from sgpipe.relations.aliases import plain_name
from sgpipe.relations.names import LONGEST, RULE, name_fault
from sgpipe.relations.predicates import INVERSE, PREDICATES, SYMMETRIC, phrase

if TYPE_CHECKING:
    import pyarrow as pa

Triple = tuple[int, str, int]
Fact = tuple[str, str, str]
"""A triple by names."""
Box = tuple[float, float, float, float]
"""x, y, w, h as fractions of the image, origin at the top left."""


def _class_of(words: str) -> str:
    """The class that has this phrase, else the words themselves."""
    return next((name for name in PREDICATES if phrase(name) == words), words)


def suggestion(name: str, known: Collection[str]) -> str:
    """The end of an error about an unknown name: what was perhaps meant, else what is valid."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    if near:
        return f"did you mean {' or '.join(repr(each) for each in near)}?"
    listed = ", ".join(sorted(known)[:30])
    return f"valid: {listed}{', …' if len(known) > 30 else ''}"


@dataclass(frozen=True)
class SceneGraph:
    """Objects and the directed triples among them. Raises `DataError` for anything that is no scene graph.

    An object without a triple and a graph without triples are allowed; so is a triple that is given twice. `boxes` has one entry
    per object, None for one of unknown place, or is empty.
    """

    objects: tuple[str, ...] = ()
    triples: tuple[Triple, ...] = ()
    boxes: tuple[Box | None, ...] = ()

    def __post_init__(self) -> None:
        if self.boxes and len(self.boxes) != len(self.objects):
            raise DataError(
                f"{len(self.boxes)} boxes for {len(self.objects)} objects; give each object a box or null, or no boxes at all"
            )
        for name, box in zip(self.objects, self.boxes, strict=False):
            if box is not None and not (all(map(math.isfinite, box)) and min(box[2:]) > 0):
                raise DataError(
                    f"box {list(box)} of {name!r}: valid is [x, y, width, height] in fractions of the image, both sides above 0"
                )
        for name in self.objects:
            _check_name(name, "object")
        for subject, predicate, object_ in self.triples:
            shown = f"triple ({subject}, {predicate!r}, {object_})"
            _check_name(predicate, f"{shown}: predicate")
            for index in (subject, object_):
                if not 0 <= index < len(self.objects):
                    raise DataError(
                        f"{shown}: there is no object {index}; the graph has {len(self.objects)} objects, numbered from 0"
                    )
            if subject == object_:
                raise DataError(
                    f"{shown}: a self-loop on {self.objects[subject]!r}; name two objects, which may have the same name"
                )

    @classmethod
    def of(cls, subject: str, predicate: str, object_: str) -> Self:
        """The graph of one triple of names."""
        return cls((subject, object_), ((0, predicate, 1),))

    def check_predicates(self, table: Collection[str], what: str = "predicate table") -> None:
        """Raises `DataError` naming a predicate that is not in `table`."""
        for _, predicate, _ in self.triples:
            if predicate not in table:
                raise DataError(f"predicate {predicate!r} is not in the {what}; {suggestion(predicate, table)}")

    def reversed(self) -> Self:
        """The same objects with subject and object of every triple exchanged: g⁻ of a graph of directional triples.

        The ends of one triple exchange boxes; where several are turned, those of their ends are unknown.
        """
        boxes = _moved(self.boxes, self.triples, len(self.triples) == 1)
        return type(self)(self.objects, tuple((o, p, s) for s, p, o in self.triples), boxes)

    def negated(self, kind: str, predicate: str, changed: int = 0) -> Self:
        """g⁻: triple `changed` with its ends exchanged (`swap`) or with another predicate (`replace`), the others as they are.

        Objects are numbered by their first mention in the triples, those without a triple last. The changed triple's ends exchange
        boxes for a `swap`, else theirs are unknown: boxes are where an object is by its graph.
        Raises `DataError` for another kind and a triple that the graph lacks.
        """
        if kind not in ("swap", "replace") or not 0 <= changed < len(self.triples):
            raise DataError(
                f"graph `{self}`: no negative of kind {kind!r} of triple {changed}; valid: swap, replace, of one of its "
                f"{len(self.triples)} triples, numbered from 0"
            )
        s, _, o = self.triples[changed]
        boxes = _moved(self.boxes, self.triples[changed : changed + 1], kind == "swap")
        turned = (o, predicate, s) if kind == "swap" else (s, predicate, o)
        triples = (*self.triples[:changed], turned, *self.triples[changed + 1 :])
        mentioned = [index for s, _, o in triples for index in (s, o)]
        order = list(dict.fromkeys([*mentioned, *range(len(self.objects))]))
        place = {index: new for new, index in enumerate(order)}
        return type(self)(
            tuple(self.objects[index] for index in order),
            tuple((place[s], p, place[o]) for s, p, o in triples),
            tuple(boxes[index] for index in order) if boxes else (),
        )

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> Self:
        """The graph in the columns `objects`, `boxes` and `triples` of a row of curated triples."""
        triples = ((each["subject"], each["predicate"], each["object"]) for each in row["triples"])
        return cls(tuple(row["objects"]), tuple(triples), tuple(tuple(box) for box in row["boxes"]))

    @property
    def named(self) -> tuple[tuple[str, str, str], ...]:
        """The triples with the names of their objects."""
        return tuple((self.objects[s], p, self.objects[o]) for s, p, o in self.triples)

    @property
    def named_facts(self) -> tuple[Fact, ...]:
        """The named triples in one spelling each: of a class and its inverse one, of a symmetric class with its ends sorted."""
        return tuple(map(_fact, self.named))

    @property
    def facts(self) -> frozenset[Fact]:
        """`named_facts` as a set."""
        return frozenset(self.named_facts)

    def __str__(self) -> str:
        return "; ".join(map(", ".join, self.named))


def _fact(triple: tuple[str, str, str]) -> Fact:
    subject, predicate, object_ = triple
    if predicate in SYMMETRIC:
        return min(subject, object_), predicate, max(subject, object_)
    inverse = INVERSE.get(predicate, predicate)
    return triple if predicate <= inverse else (object_, inverse, subject)


def _moved(boxes: tuple[Box | None, ...], triples: Iterable[Triple], exchanged: bool) -> tuple[Box | None, ...]:
    """Boxes with those of each triple's ends exchanged, or None."""
    found = list(boxes)
    for s, _, o in triples if boxes else ():
        found[s], found[o] = (found[o], found[s]) if exchanged else (None, None)
    return tuple(found)


def combinations_of(triples: Iterable[Triple]) -> set[tuple[str, str]]:
    """The classes of each two triples that share an object, sorted; a class and its inverse count as one."""
    known = [(frozenset((s, o)), min(p, INVERSE.get(p, p))) for s, p, o in triples]
    return {(min(p, q), max(p, q)) for (a, p), (b, q) in combinations(known, 2) if a & b}


def graphs_of(triples: "pa.Table") -> list[SceneGraph]:
    """The graph of each row of curated triples."""
    return [SceneGraph.of_row(row) for row in triples.select(["objects", "boxes", "triples"]).to_pylist()]


def _check_name(name: str, what: str) -> None:
    fault = name_fault(name)
    if fault is not None:
        raise DataError(f"{what} {name[:LONGEST]!r} is no name: {fault}; {RULE}")


def parse_graph(text: str, predicates: Collection[str] = PREDICATES) -> SceneGraph:
    """A graph from `subject, predicate, object` (several separated by `;`) or from JSON text.

    Names are put in lower case and lose a leading article. Raises `DataError` saying which triple is at fault.
    """
    if text.lstrip().startswith("{"):
        return _from_json(text.encode(), "the graph", predicates)
    numbers: dict[str, int] = {}
    triples: list[Triple] = []
    for part in text.split(";"):
        words = [plain_name(word) for word in part.split(",")]
        if len(words) != 3 or not all(words):
            raise DataError(
                f"graph {text!r}: {part.strip()!r} is no triple; write `subject, predicate, object` "
                f"and separate triples with `;`, or give JSON"
            )
        subject, predicate, object_ = words
        if subject == object_:
            raise DataError(
                f"graph {text!r}: {part.strip()!r} relates {subject!r} to itself; in this form a name is one object, "
                f'two of a name need JSON: {{"objects": [...], "triples": [[0, "{predicate}", 1]]}}'
            )
        ends = [numbers.setdefault(name, len(numbers)) for name in (subject, object_)]
        triples.append((ends[0], _class_of(predicate), ends[1]))
    graph = SceneGraph(tuple(numbers), tuple(triples))
    graph.check_predicates(predicates)
    return graph


def read_graph(path: Path, predicates: Collection[str] = PREDICATES) -> SceneGraph:
    """A graph from a JSON file. Raises `DataError` naming the file."""
    if not path.is_file():
        raise DataError(f'{path}: no such file; a graph is JSON: {{"objects": [...], "triples": [[0, "left of", 1]]}}')
    return _from_json(path.read_bytes(), str(path), predicates)


def given_graph(text: str, predicates: Collection[str] = PREDICATES) -> SceneGraph:
    """A graph as a command is given it: the name of a JSON file, or what `parse_graph` takes; no text is the empty graph."""
    if text.endswith(".json"):
        return read_graph(Path(text), predicates)
    return parse_graph(text, predicates) if text.strip() else SceneGraph()


class _Written(msgspec.Struct, forbid_unknown_fields=True):
    objects: list[str]
    triples: list[tuple[int, str, int]] = []
    boxes: list[Box | None] = []


def _from_json(text: bytes, where: str, predicates: Collection[str]) -> SceneGraph:
    try:
        written = msgspec.json.decode(text, type=_Written)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DataError(f'{where}: not JSON of the form {{"objects": [...], "triples": [[0, "left of", 1]]}}: {error}') from None
    triples = [(s, plain_name(p), o) for s, p, o in written.triples]
    try:
        graph = SceneGraph(
            tuple(map(plain_name, written.objects)), tuple((s, _class_of(p), o) for s, p, o in triples), tuple(written.boxes)
        )
        graph.check_predicates(predicates)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    return graph
