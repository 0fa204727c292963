"""The 24 relation classes, their phrases and their symmetries (seed document, "The relationship classes")."""

from typing import Final

PREDICATES: Final[tuple[str, ...]] = (
    "above",
    "around/near",
    "behind",
    "below",
    "carrying",
    "drinking",
    "eating",
    "hanging from",
    "holding",
    "in",
    "in front of",
    "left of",
    "looking at",
    "on",
    "playing with",
    "pulling",
    "pushing",
    "riding",
    "right of",
    "sitting on",
    "standing on",
    "touching",
    "using",
    "wearing",
)
"""Class names in the order that every label, confusion matrix and embedding row of this project uses."""

PREDICATE_INDEX: Final[dict[str, int]] = {name: i for i, name in enumerate(PREDICATES)}

INVERSE: Final[dict[str, str]] = {
    "above": "below",
    "below": "above",
    "behind": "in front of",
    "in front of": "behind",
    "left of": "right of",
    "right of": "left of",
}
"""Directional predicates: `(s, p, o)` holds exactly when `(o, INVERSE[p], s)` does."""

DIRECTIONAL: Final[frozenset[str]] = frozenset(INVERSE)
SYMMETRIC: Final[frozenset[str]] = frozenset({"around/near", "touching"})
"""`(s, p, o)` and `(o, p, s)` say the same: swapping the two makes no negative."""


def phrase(predicate: str) -> str:
    """The words that stand for a class in prompts and concepts: its name, but "near" for `around/near`."""
    return "near" if predicate == "around/near" else predicate


def relational_prompt(subject: str, predicate: str, object_: str) -> str:
    """Prompt of the seed document: `a photo of {subject} {predicate phrase} {object} on a plain background`."""
    return f"a photo of {subject} {phrase(predicate)} {object_} on a plain background"


def neutral_prompt(first: str, second: str) -> str:
    """The two names without the relation, in the order in which they are to be mentioned."""
    return f"a photo of {first} and {second} on a plain background"


def concepts(subject: str, predicate: str, object_: str) -> tuple[str, str, str]:
    """The K = 3 concept strings of ConceptAttention for a triple: subject, relation phrase, object."""
    return subject, phrase(predicate), object_
