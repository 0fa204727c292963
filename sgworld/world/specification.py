"""What a caption says and what a scene is made of: values only."""

from dataclasses import dataclass

import numpy as np

from sgpipe.errors import DataError
from sgpipe.relations.predicates import PREDICATES, phrase
from sgworld.world.classes import plausible
from sgworld.world.held_out import Triple
from sgworld.world.sprites import size_of

MOST_OBJECTS, MOST_TRIPLES = 4, 4

BACKGROUND, ANCHOR_X, ANCHOR_Y = 0, 1, 2
"""Slots of u: background; place of the first group of related objects."""
CLASS, ACROSS, DOWN, SUBJECT, DISTANCE = 3, 7, 11, 15, 19
"""First of four slots each, one per relation in the order said: its class; whether the first said of the two is left or right of
the second; above or below it; whether the left (upper) one is the subject; its distance."""
PLACE_X, PLACE_Y = 23, 26
"""First of three slots each, one per further group (an unrelated object is a group): its place."""
JOIN = 29
"""First of two slots: to what the third and the fourth object of a neutral caption relate, if to any."""
SLOTS = 31


@dataclass(frozen=True)
class Caption:
    """Names and relations between them in the order in which they are said; roles are open, `(a, p, b)` says what `(b, p, a)` does.

    Without relations it is neutral: any plausible ones may be shown. Raises `DataError` for what no scene can show.
    """

    names: tuple[str, ...]
    relations: tuple[Triple, ...] = ()

    def __post_init__(self) -> None:
        names = self.names
        if not 2 <= len(set(names)) == len(names) <= MOST_OBJECTS:
            raise DataError(f"caption of {', '.join(names)}: 2 to {MOST_OBJECTS} different objects are needed")
        for name in names:
            size_of(name)
        if len(self.relations) > MOST_TRIPLES:
            raise DataError(f"caption: {len(self.relations)} relations; at most {MOST_TRIPLES} fit")
        for first, predicate, second in self.relations:
            if predicate not in PREDICATES or not {first, second} <= set(names) or first == second:
                raise DataError(f"caption: ({first}, {predicate}, {second}) joins no two of {', '.join(names)} by a known class")
            if not (plausible(first, predicate, second) or plausible(second, predicate, first)):
                raise DataError(f"caption: {predicate!r} is not drawn between {first} and {second}, whoever is the subject")
        if len({frozenset((a, b)) for a, _, b in self.relations}) != len(self.relations):
            raise DataError("caption: one pair has two relations; a pair shows one")

    def reordered(self, rng: np.random.Generator) -> "Caption":
        """The same said in another order: relations, the two names of each, and names that are in none of them."""
        relations = []
        for index in rng.permutation(len(self.relations)):
            first, predicate, second = self.relations[index]
            relations.append((first, predicate, second) if rng.random() < 0.5 else (second, predicate, first))
        return Caption(tuple(self.names[index] for index in rng.permutation(len(self.names))), tuple(relations))

    def text(self) -> str:
        """The caption in words: relations, then what is in none of them."""
        related = {name for a, _, b in self.relations for name in (a, b)}
        said = [f"{first} {phrase(predicate)} {second}" for first, predicate, second in self.relations]
        said += [name for name in self.names if name not in related]
        listed = " and ".join(filter(None, (", ".join(said[:-1]), said[-1])))
        return f"a photo of {listed} on a plain background"


@dataclass(frozen=True)
class Placed:
    """An object and its box, cells of 4 px."""

    name: str
    x: int
    y: int
    w: int
    h: int
    facing: str

    @property
    def box(self) -> tuple[int, int, int, int]:
        """`(x, y, w, h)`, cells."""
        return self.x, self.y, self.w, self.h


@dataclass(frozen=True)
class Mark:
    """The mark of a class, its box in cells, and whether it is mirrored."""

    kind: str
    x: int
    y: int
    w: int
    h: int
    mirrored: bool


@dataclass(frozen=True)
class Scene:
    """Objects, triples between them (indices of subject and object), the order in which objects are painted, marks over them."""

    background: int
    objects: tuple[Placed, ...]
    relations: tuple[tuple[int, str, int], ...]
    order: tuple[int, ...]
    marks: tuple[Mark, ...]

    @property
    def triples(self) -> tuple[Triple, ...]:
        """The triples by names."""
        return tuple((self.objects[s].name, p, self.objects[o].name) for s, p, o in self.relations)
