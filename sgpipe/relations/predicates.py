"""The relation classes (seed document, "The relationship classes") as `relations.yaml` lists them, and texts that name them."""

from collections.abc import Mapping
from importlib.resources import files
from typing import Final

import msgspec

from sgpipe.errors import DataError


class Relation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One class; the fields are explained at the head of `relations.yaml`."""

    phrase: str | None = None
    inverse: str | None = None
    symmetric: bool = False
    weak: bool = False
    may_hold: tuple[str, ...] = ()
    confusions: dict[str, float] = {}


def read_relations(text: bytes, source: str) -> dict[str, Relation]:
    """Classes by name from YAML. Raises `DataError` for an unknown field or class, and for inverses that do not fit together."""
    try:
        found = msgspec.yaml.decode(text, type=dict[str, Relation])
    except msgspec.DecodeError as error:
        raise DataError(f"{source}: no list of relation classes ({error})") from None
    for name, relation in found.items():
        for other in (*relation.may_hold, *relation.confusions, *filter(None, (relation.inverse,))):
            if other not in found:
                raise DataError(f"{source}: {name}: {other!r} is no class; valid: {', '.join(found)}")
        if relation.inverse is not None and (relation.symmetric or found[relation.inverse].inverse != name):
            raise DataError(
                f"{source}: {name}: inverse {relation.inverse!r} must name {name!r} as its own inverse, and neither be symmetric"
            )
    return found


RELATIONS: Final[Mapping[str, Relation]] = read_relations(
    files("sgpipe.relations").joinpath("relations.yaml").read_bytes(), "relations.yaml"
)
PREDICATES: Final[tuple[str, ...]] = tuple(RELATIONS)
"""Class names in the order that every label, confusion matrix and embedding row of this project uses."""

PREDICATE_INDEX: Final[dict[str, int]] = {name: i for i, name in enumerate(PREDICATES)}

INVERSE: Final[dict[str, str]] = {name: each.inverse for name, each in RELATIONS.items() if each.inverse}
"""Directional predicates: `(s, p, o)` holds exactly when `(o, INVERSE[p], s)` does."""

DIRECTIONAL: Final[frozenset[str]] = frozenset(INVERSE)
SYMMETRIC: Final[frozenset[str]] = frozenset(name for name, each in RELATIONS.items() if each.symmetric)
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
