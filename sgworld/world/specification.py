"""What a caption says and what a scene is made of: values only."""

from dataclasses import dataclass

import numpy as np

from sgpipe.errors import DataError
from sgpipe.relations.predicates import PREDICATES, phrase
from sgworld.world.classes import plausible
from sgworld.world.held_out import Triple
from sgworld.world.sprites import size_of

MOST_OBJECTS, MOST_TRIPLES = 4, 4

BACKGROUND, ANCHOR_X, ANCHOR_Y, PAIR = 0, 1, 2, 3
"""Slots of u: background; place of the first group of related objects; which two objects a neutral caption relates first."""
CLASS, ROLE, WAY, DISTANCE = 4, 8, 12, 16
"""First of four slots each, one per relation: its class, its subject, its side, its distance."""
PLACE_X, PLACE_Y = 20, 23
"""First of three slots each, one per further group (an unrelated object is a group): its place."""
JOIN = 26
"""First of two slots: to what the third and the fourth object of a neutral caption relate, if to any."""
SLOTS = 28


@dataclass(frozen=True)
class Caption:
    """Names in alphabetical order and relations between them, whose roles are open: `(a, p, b)` and `(b, p, a)` are equal.

    Without relations it is neutral: any plausible ones may be shown. Raises `DataError` for what no scene can show.
    """

    names: tuple[str, ...]
    relations: tuple[Triple, ...] = ()

    def __post_init__(self) -> None:
        names = tuple(sorted(self.names))
        if not 2 <= len(set(names)) == len(names) <= MOST_OBJECTS:
            raise DataError(f"caption of {', '.join(self.names)}: 2 to {MOST_OBJECTS} different objects are needed")
        for name in names:
            size_of(name)
        if len(self.relations) > MOST_TRIPLES:
            raise DataError(f"caption: {len(self.relations)} relations; at most {MOST_TRIPLES} fit")
        relations = []
        for first, predicate, second in self.relations:
            if predicate not in PREDICATES or not {first, second} <= set(names) or first == second:
                raise DataError(f"caption: ({first}, {predicate}, {second}) joins no two of {', '.join(names)} by a known class")
            if not (plausible(first, predicate, second) or plausible(second, predicate, first)):
                raise DataError(f"caption: {predicate!r} is not drawn between {first} and {second}, whoever is the subject")
            relations.append((min(first, second), predicate, max(first, second)))
        pairs = {(a, b) for a, _, b in relations}
        if len(pairs) != len(relations):
            raise DataError("caption: one pair has two relations; a pair shows one")
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "relations", tuple(sorted(relations, key=lambda each: (each[0], each[2]))))

    def text(self, rng: np.random.Generator) -> str:
        """The caption in words: relations in any order, the two names of each in either order, then what is in none of them."""
        said = []
        for index in rng.permutation(len(self.relations)):
            first, predicate, second = self.relations[index]
            if rng.random() < 0.5:
                first, second = second, first
            said.append(f"{first} {phrase(predicate)} {second}")
        related = {name for a, _, b in self.relations for name in (a, b)}
        alone = [name for name in self.names if name not in related]
        said += [alone[index] for index in rng.permutation(len(alone))]
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
