"""The relation classes in force, and texts that name them: those of the seed document, as `relations.yaml` lists them, or those of
a file of one's own (`data.relations`).
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import msgspec

from sgpipe.errors import DataError
from sgpipe.relations.names import RULE, name_fault

V = TypeVar("V")


BoxRule = Literal["left of", "right of", "above", "below", "inside", "upon", "hanging", "near", "touching"]
"""Names of the rules in `boxes.BOX_RULES`."""


_OPPOSITE: Final[Mapping[str | None, str]] = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


class Relation(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One class; the fields are explained at the head of `relations.yaml`."""

    phrase: str | None = None
    inverse: str | None = None
    symmetric: bool = False
    weak: bool = False
    may_hold: tuple[str, ...] = ()
    confusions: dict[str, float] = {}
    aliases: tuple[str, ...] = ()
    box_rule: BoxRule | None = None


def read_relations(text: bytes, source: str) -> dict[str, Relation]:
    """Classes by name from YAML. Raises `DataError` for an unknown field or class, and for inverses that do not fit together."""
    try:
        found = msgspec.yaml.decode(text, type=dict[str, Relation])
    except msgspec.DecodeError as error:
        raise DataError(f"{source}: no list of relation classes ({' '.join(str(error).split())})") from None
    return _checked(found, source)


def _checked(found: dict[str, Relation], source: str) -> dict[str, Relation]:
    for name, relation in found.items():
        if fault := name_fault(name):
            raise DataError(f"{source}: {name!r} can name no class: {fault}; {RULE}")
        for other in (*relation.may_hold, *relation.confusions, *filter(None, (relation.inverse,))):
            if other not in found:
                raise DataError(f"{source}: {name}: {other!r} is no class; valid: {', '.join(found)}")
        if relation.inverse is not None and (relation.symmetric or found[relation.inverse].inverse != name):
            raise DataError(
                f"{source}: {name}: inverse {relation.inverse!r} must name {name!r} as its own inverse, and neither be symmetric"
            )
        own, rule = relation.box_rule, None if relation.inverse is None else found[relation.inverse].box_rule
        if own in _OPPOSITE and rule is not None and rule != _OPPOSITE[own]:
            raise DataError(
                f"{source}: {name}: box_rule {own!r}, of its inverse {relation.inverse!r} {rule!r}; give that {_OPPOSITE[own]!r}"
            )
    return found


_OF_GRAPHS: Final = ("phrase", "inverse", "symmetric", "box_rule")
OWN: Final = "SGPIPE_RELATIONS"
"""Environment variable with the file of own classes, so that processes which a stage starts have them, too."""


class _Classes:
    """The classes in force, and what is looked up in them."""

    def __init__(self, relations: dict[str, Relation], own: bool) -> None:
        self.own, self.relations = own, relations
        self.names = tuple(self.relations)
        self.index = {name: i for i, name in enumerate(self.names)}
        self.inverse = {name: each.inverse for name, each in self.relations.items() if each.inverse}
        self.directional = frozenset(self.inverse)
        self.symmetric = frozenset(name for name, each in self.relations.items() if each.symmetric)


def _read(path: str | None) -> _Classes:
    source = files("sgpipe.relations").joinpath("relations.yaml") if path is None else Path(path)
    try:
        text = source.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path}: own relation classes cannot be read ({error.strerror}); set data.relations to their file"
        ) from None
    return _Classes(read_relations(text, path or "relations.yaml"), path is not None)


_in_force = _read(os.environ.get(OWN))


def use_relations(path: str | Path | None) -> None:
    """Put the classes of a file in force in this process and in those that it starts; None: the built-in ones.

    Raises `DataError` where the file is no list of classes.
    """
    global _in_force
    wanted = None if path is None else str(path)
    _in_force = _read(wanted)
    if wanted is None:
        os.environ.pop(OWN, None)
    else:
        os.environ[OWN] = str(Path(wanted).resolve())


def own_relations() -> Mapping[str, Relation]:
    """The classes in force where they are not the built-in ones; else empty."""
    return _in_force.relations if _in_force.own else {}


def class_definitions() -> list[dict[str, Any]]:
    """What a graph needs of the classes in force, in their order: `name`, and what is set of `_OF_GRAPHS`."""
    plain = {name: msgspec.to_builtins(relation) for name, relation in _in_force.relations.items()}
    return [{"name": name, **{key: each[key] for key in _OF_GRAPHS if key in each}} for name, each in plain.items()]


def use_classes(definitions: Iterable[Mapping[str, Any]], source: str) -> None:
    """Put what `class_definitions` gave in force in this process. Raises `DataError` naming the `source` where it is none."""
    global _in_force
    try:
        named = {each["name"]: {key: each[key] for key in each if key != "name"} for each in definitions}
        found = msgspec.convert(named, dict[str, Relation])
    except (msgspec.ValidationError, KeyError, TypeError) as error:
        raise DataError(f"{source}: `relations` is no list of relation classes ({' '.join(str(error).split())})") from None
    _in_force = _Classes(_checked(found, source), True)


class _Names(Sequence[str]):
    def __getitem__(self, place: Any) -> Any:
        return _in_force.names[place]

    def __len__(self) -> int:
        return len(_in_force.names)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and _in_force.names == tuple(other)

    def __hash__(self) -> int:
        return hash(_in_force.names)

    def __repr__(self) -> str:
        return repr(_in_force.names)


class Table(Mapping[str, V]):
    """A view of what a function gives at each look."""

    def __init__(self, of: Callable[[], Mapping[str, V]]) -> None:
        self._of = of

    def __getitem__(self, name: str) -> V:
        return self._of()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._of())

    def __len__(self) -> int:
        return len(self._of())


class _Some(Set[str]):
    def __init__(self, of: Callable[[], frozenset[str]]) -> None:
        self._of = of

    def __contains__(self, name: object) -> bool:
        return name in self._of()

    def __iter__(self) -> Iterator[str]:
        return iter(self._of())

    def __len__(self) -> int:
        return len(self._of())

    @classmethod
    def _from_iterable(cls, names: Iterable[Any]) -> Any:
        return frozenset(names)


RELATIONS: Final = Table(lambda: _in_force.relations)
"""The classes in force: this and the following are views, which show what `use_relations` put there."""
PREDICATES: Final = _Names()
"""Class names in the order that every label, confusion matrix and embedding row of this project uses."""

PREDICATE_INDEX: Final = Table(lambda: _in_force.index)

INVERSE: Final = Table(lambda: _in_force.inverse)
"""Directional predicates: `(s, p, o)` holds exactly when `(o, INVERSE[p], s)` does."""

DIRECTIONAL: Final = _Some(lambda: _in_force.directional)
SYMMETRIC: Final = _Some(lambda: _in_force.symmetric)
"""`(s, p, o)` and `(o, p, s)` say the same: swapping the two makes no negative."""


def may_hold(other: str, annotated: str) -> bool:
    """Whether `other` can be true of a subject and object for which `annotated` is."""
    return other == annotated or RELATIONS[other].weak or other in RELATIONS[annotated].may_hold


def nothing_against(predicate: str) -> DataError:
    """The error where each class in force can hold beside `predicate`, so that nothing contradicts it."""
    return DataError(
        f"relation class {predicate!r}: each of the {len(PREDICATES)} classes can hold beside it, so no graph says the contrary; "
        "give it an inverse, or add another class to data.relations"
    )


def phrase(predicate: str) -> str:
    """The words that stand for a class in prompts and concepts: its name, but "near" for `around/near`."""
    relation = RELATIONS.get(predicate)
    return predicate if relation is None or relation.phrase is None else relation.phrase


def relational_prompt(subject: str, predicate: str, object_: str) -> str:
    """Prompt of the seed document: `a photo of {subject} {predicate phrase} {object} on a plain background`."""
    return f"a photo of {subject} {phrase(predicate)} {object_} on a plain background"


def neutral_prompt(first: str, second: str) -> str:
    """The two names without the relation, in the order in which they are to be mentioned."""
    return f"a photo of {first} and {second} on a plain background"


def concepts(subject: str, predicate: str, object_: str) -> tuple[str, str, str]:
    """The K = 3 concept strings of ConceptAttention for a triple: subject, relation phrase, object."""
    return subject, phrase(predicate), object_
