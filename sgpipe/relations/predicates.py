"""The relation classes in force, and texts that name them: those of the seed document, as `relations.yaml` lists them, or those of
a file of one's own (`data.relations`).
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from sgpipe.errors import DataError
from sgpipe.relations.names import RULE, name_fault

V = TypeVar("V")


class Relation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One class; the fields are explained at the head of `relations.yaml`."""

    phrase: str | None = None
    inverse: str | None = None
    symmetric: bool = False
    weak: bool = False
    may_hold: tuple[str, ...] = ()
    confusions: dict[str, float] = {}
    aliases: tuple[str, ...] = ()


def read_relations(text: bytes, source: str) -> dict[str, Relation]:
    """Classes by name from YAML. Raises `DataError` for an unknown field or class, and for inverses that do not fit together."""
    try:
        found = msgspec.yaml.decode(text, type=dict[str, Relation])
    except msgspec.DecodeError as error:
        raise DataError(f"{source}: no list of relation classes ({' '.join(str(error).split())})") from None
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
    return found


OWN: Final = "SGPIPE_RELATIONS"
"""Environment variable with the file of own classes, so that processes which a stage starts have them, too."""


class _Classes:
    """The classes in force, and what is looked up in them."""

    def __init__(self, path: str | None) -> None:
        source = files("sgpipe.relations").joinpath("relations.yaml") if path is None else Path(path)
        try:
            text = source.read_bytes()
        except OSError as error:
            raise DataError(
                f"{path}: own relation classes cannot be read ({error.strerror}); set data.relations to their file"
            ) from None
        self.path = path
        self.relations = read_relations(text, "relations.yaml" if path is None else path)
        self.names = tuple(self.relations)
        self.index = {name: i for i, name in enumerate(self.names)}
        self.inverse = {name: each.inverse for name, each in self.relations.items() if each.inverse}
        self.directional = frozenset(self.inverse)
        self.symmetric = frozenset(name for name, each in self.relations.items() if each.symmetric)


_in_force = _Classes(os.environ.get(OWN))


def use_relations(path: str | Path | None) -> None:
    """Put the classes of a file in force in this process and in those that it starts; None: the built-in ones.

    Raises `DataError` where the file is no list of classes.
    """
    global _in_force
    wanted = None if path is None else str(path)
    _in_force = _Classes(wanted)
    if wanted is None:
        os.environ.pop(OWN, None)
    else:
        os.environ[OWN] = str(Path(wanted).resolve())


def own_relations() -> Mapping[str, Relation]:
    """The classes in force where they are not the built-in ones; else empty."""
    return {} if _in_force.path is None else _in_force.relations


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


class _Table(Mapping[str, V]):
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


RELATIONS: Final = _Table(lambda: _in_force.relations)
"""The classes in force: this and the following are views, which show what `use_relations` put there."""
PREDICATES: Final = _Names()
"""Class names in the order that every label, confusion matrix and embedding row of this project uses."""

PREDICATE_INDEX: Final = _Table(lambda: _in_force.index)

INVERSE: Final = _Table(lambda: _in_force.inverse)
"""Directional predicates: `(s, p, o)` holds exactly when `(o, INVERSE[p], s)` does."""

DIRECTIONAL: Final = _Some(lambda: _in_force.directional)
SYMMETRIC: Final = _Some(lambda: _in_force.symmetric)
"""`(s, p, o)` and `(o, p, s)` say the same: swapping the two makes no negative."""


def may_hold(other: str, annotated: str) -> bool:
    """Whether `other` can be true of a subject and object for which `annotated` is."""
    return other == annotated or RELATIONS[other].weak or other in RELATIONS[annotated].may_hold


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
