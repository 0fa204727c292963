"""The untidiness of real annotations, at about the rates of Visual Genome: predicates and names as people type them."""

from collections import defaultdict
from functools import cache

import numpy as np

from sgpipe.relations.aliases import PredicateMap, read_table
from sgpipe.relations.predicates import PREDICATES, phrase

UNMAPPED = ("has", "of", "with", "from", "for", "made of", "part of", "a", "black", "blue", "and", "at")
"""Predicates that state no relation of the 24; about a quarter of Visual Genome's relationships carry one."""

NAME_ALIASES: dict[str, tuple[str, ...]] = {
    "airplane": ("plane", "aircraft"),
    "bag": ("purse", "handbag"),
    "bike": ("bicycle",),
    "bottle": ("bottles",),
    "car": ("automobile",),
    "cat": ("kitten",),
    "cup": ("mug",),
    "dog": ("puppy",),
    "motorcycle": ("motorbike",),
    "person": ("human", "people"),
}
"""Lines of the `object_alias.txt` that the data set brings."""


@cache
def _lookup() -> PredicateMap:
    return PredicateMap.load()


@cache
def aliases() -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, ...]]]:
    """Raw predicates of each class, and of each class with subject and object exchanged; only ones that lead back to it."""
    lookup = _lookup()
    straight: dict[str, list[str]] = defaultdict(list)
    inverse: dict[str, list[str]] = defaultdict(list)
    for alias, meaning in read_table()[0].items():
        if meaning.predicate and lookup.meaning(alias) == meaning:
            (inverse if meaning.inverse else straight)[meaning.predicate].append(alias)
    return ({name: tuple(straight[name]) for name in PREDICATES}, {name: tuple(values) for name, values in inverse.items()})


def raw_predicate(rng: np.random.Generator, predicate: str) -> tuple[str, bool]:
    """A class as an annotator might type it, and whether subject and object are exchanged by it.

    55 % the plain phrase, 30 % an alias, 15 % an inverse one where there is one; then, each with its own small chance,
    capitals, a leading be-verb, a trailing article, a double space. What would no longer lead back to the class is not used.
    """
    straight, inverse = aliases()
    kind, exchanged = rng.random(), False
    text = phrase(predicate)
    if kind > 0.85 and predicate in inverse:
        text, exchanged = str(rng.choice(inverse[predicate])), True
    elif kind > 0.55:
        text = str(rng.choice(straight[predicate]))
    dirty = text
    if rng.random() < 0.07:
        dirty = f"{rng.choice(['is', 'are'])} {dirty}"
    if rng.random() < 0.04:
        dirty = f"{dirty} {rng.choice(['a', 'the'])}"
    if rng.random() < 0.03:
        dirty = dirty.replace(" ", "  ") if " " in dirty else f"{dirty} "
    if rng.random() < 0.08:
        dirty = dirty.upper()
    meaning = _lookup().meaning(dirty) if dirty != text else None
    if meaning is not None and (meaning.predicate, meaning.inverse) != (predicate, exchanged):
        dirty = text
    return dirty, exchanged


def raw_name(rng: np.random.Generator, name: str) -> str:
    """A name as typed: now and then an alias, capitals, an article or a space too many."""
    text = str(rng.choice(NAME_ALIASES[name])) if name in NAME_ALIASES and rng.random() < 0.05 else name
    kind = rng.random()
    if kind < 0.03:
        return text.upper()
    if kind < 0.06:
        return f"the {text}"
    return f"{text} " if kind < 0.08 else text
