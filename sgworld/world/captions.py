"""Which captions there are and how often: pairs of names by kind, classes so that names tell little of them, what is held out."""

from collections.abc import Collection
from functools import cache
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from sgpipe.errors import DataError
from sgpipe.relations.predicates import INVERSE, PREDICATES
from sgworld.world.classes import ANIMATE, HANGERS, SEATS, SMALL, VEHICLES, plausible
from sgworld.world.compose import compose
from sgworld.world.held_out import held_out
from sgworld.world.reading import unmarked_triple
from sgworld.world.specification import MOST_OBJECTS, SLOTS, Caption, Scene, Triple
from sgworld.world.sprites import NAMES

NEUTRAL = 0.4
"""Share of captions that name objects alone."""
OBJECTS = (0.40, 0.32, 0.28)
"""Shares of scenes of two, three and four objects."""
LOOSE = 0.2
"""Chance of each object after the second to be related to nothing in a relational caption."""
APART, CLOSED = 0.2, 0.6
"""Chance of two further objects to be related to one another alone, and of one more relation where the scene shows one."""
KINDS = (
    (ANIMATE, SMALL, 0.44), (ANIMATE, (*SEATS, *VEHICLES, "cat", "bird"), 0.34), (SMALL, HANGERS, 0.10), (NAMES, NAMES, 0.12)
)  # fmt: skip
"""Kinds of ordered pairs and the share of each."""
_MOST, _ROUNDS = 4.0, 200


@cache
def class_shares() -> tuple[tuple[tuple[str, str], ...], NDArray[np.float64], NDArray[np.float64]]:
    """Ordered pairs of names, the share `[N]` of each, and of each the shares `[N, 24]` of classes.

    A pair's shares are proportional to one weight per class, fitted so that over all pairs classes are as frequent as one another
    as far as weights of at most four times the least allow.
    """
    pairs = tuple((s, o) for s in NAMES for o in NAMES if s != o)
    share = np.zeros(len(pairs))
    for subjects, objects, part in KINDS:
        inside = np.array([s in subjects and o in objects for s, o in pairs], float)
        share += part * inside / inside.sum()
    possible = np.array([[plausible(s, p, o) for p in PREDICATES] for s, o in pairs], float)
    weights = np.ones(len(PREDICATES))
    for _ in range(_ROUNDS):
        shares = possible * weights
        shares /= shares.sum(1, keepdims=True)
        weights *= (1 / len(PREDICATES) / (share @ shares)) ** 0.3
        weights = np.clip(weights / weights.min(), 1, _MOST)
    return pairs, share, shares


def known_by_names() -> float:
    """How often the likeliest class by the ordered names of a triple is its class."""
    _, share, shares = class_shares()
    return float(share @ shares.max(1))


def sample_triple(rng: np.random.Generator, joined: Collection[str] = (), apart: Collection[str] = ()) -> Triple:
    """A triple by these shares, of names outside `apart`; one of the two is in `joined` where that is given, a part of `apart`."""
    pairs, share, shares = class_shares()
    if apart:
        inside, outside = (np.isin(_numbers(), [NAMES.index(name) for name in names]) for names in (joined, apart))
        share = share * ((inside.sum(1) == 1) & ((inside | ~outside).all(1)) if joined else ~outside.any(1))
    row = _one_of(rng, share)
    subject, object_ = pairs[row]
    return subject, PREDICATES[_one_of(rng, shares[row])], object_


@cache
def _numbers() -> NDArray[np.int64]:
    """Numbers of the names `[N, 2]` of the pairs of `class_shares`."""
    return np.array([[NAMES.index(name) for name in pair] for pair in class_shares()[0]])


def _one_of(rng: np.random.Generator, weights: NDArray[np.float64]) -> int:
    total = np.cumsum(weights)
    return int(np.searchsorted(total, rng.random() * total[-1], side="right"))


def _of_class(rng: np.random.Generator, predicate: str) -> Triple:
    pairs, share, shares = class_shares()
    subject, object_ = pairs[_one_of(rng, share * shares[:, PREDICATES.index(predicate)])]
    return subject, predicate, object_


def _triples(rng: np.random.Generator, objects: int, loose: int, predicate: str | None = None) -> tuple[list[str], list[Triple]]:
    """Names and triples of a scene, which may not fit one image; `loose` of the names are in no triple."""
    triples = [sample_triple(rng) if predicate is None else _of_class(rng, predicate)]
    names = [triples[0][0], triples[0][2]]
    while len(names) < objects:
        left = objects - len(names)
        if left <= loose:
            names.append(str(rng.choice([name for name in NAMES if name not in names])))
            continue
        apart = left - loose >= 2 and rng.random() < APART
        triples.append(sample_triple(rng, () if apart else names, names))
        names += [name for name in triples[-1][::2] if name not in names]
    return names, triples


def _closing(rng: np.random.Generator, caption: Caption, scene: Scene) -> Caption | None:
    """The caption with one more relation that its scene shows between two objects that others join; None if there is none."""
    linked: dict[str, set[str]] = {name: {name} for name in caption.names}
    for a, _, b in caption.relations:
        both = linked[a] | linked[b]
        for name in both:
            linked[name] = both
    told = {frozenset((a, b)) for a, _, b in caption.relations}
    boxes = {placed.name: placed.box for placed in scene.objects}
    found = []
    for a, b in combinations(caption.names, 2):
        if b in linked[a] and frozenset((a, b)) not in told:
            read = unmarked_triple((a, boxes[a]), (b, boxes[b]))
            if read is not None and read[1] in ("left of", "above"):
                found.append((a, read[1], b) if read[0] else (b, read[1], a))
    if not found:
        return None
    subject, predicate, object_ = found[int(rng.integers(len(found)))]
    if rng.random() < 0.5:
        subject, predicate, object_ = object_, INVERSE[predicate], subject
    return Caption(caption.names, (*caption.relations, (subject, predicate, object_)))


def sample_caption(
    rng: np.random.Generator, *, held: str | None = None, neutral: float = NEUTRAL, objects: int | None = None
) -> Caption:
    """A caption that some scene shows. `held` says what of it training must not show: `triple`, `combination`, or None for nothing.

    A neutral caption means no scene of held-out triples or combinations, whatever u. With `objects` it names so many.
    """
    least = 3 if held == "combination" else 2
    count = objects or max(least, int(rng.choice(len(OBJECTS), p=OBJECTS)) + 2)
    if not least <= count <= MOST_OBJECTS:
        raise DataError(f"objects: got {count}; {least} to {MOST_OBJECTS} can be asked for with {held or 'nothing'} held out")
    loose, silent = int(rng.binomial(count - least, LOOSE)), rng.random() < neutral
    for _ in range(10_000):
        names, triples = _triples(rng, count, loose)
        if held_out(triples) != held:
            continue
        try:
            if silent:
                caption = Caption(tuple(names)).reordered(rng)
                compose(caption, rng.random(SLOTS))
                return caption
            caption = Caption(tuple(names), tuple(triples)).reordered(rng)
            scene = compose(caption, rng.random(SLOTS))
            closed = _closing(rng, caption, scene) if len(triples) > 1 and rng.random() < CLOSED else None
            if closed is None:
                return caption
            if held_out(closed.relations) == held:
                closed = closed.reordered(rng)
                compose(closed, rng.random(SLOTS))
                return closed
        except DataError:
            continue
    raise DataError(f"no caption of {objects or '2 to 4'} objects with {held or 'nothing'} held out was found in 10,000 draws")


def sample_of_class(rng: np.random.Generator, predicate: str, objects: int | None = None) -> Caption:
    """A relational caption that has a class among its relations, whatever is held out."""
    count = objects or int(rng.choice(len(OBJECTS), p=OBJECTS)) + 2
    loose = int(rng.binomial(count - 2, LOOSE))
    while True:
        names, triples = _triples(rng, count, loose, predicate)
        try:
            caption = Caption(tuple(names), tuple(triples)).reordered(rng)
            compose(caption, rng.random(SLOTS))
            return caption
        except DataError:
            continue
