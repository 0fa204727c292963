"""What is true and what is false of scenes of this world, for its CLIP judge and the graph encoder's teacher to learn."""

from collections.abc import Callable, Sequence

import numpy as np

from sgpipe.relations.predicates import PREDICATES, relational_prompt
from sgworld.contrast import Statements
from sgworld.world.captions import sample_caption
from sgworld.world.classes import plausible
from sgworld.world.compose import compose
from sgworld.world.raster import render
from sgworld.world.reading import same
from sgworld.world.specification import SLOTS, Caption, Scene, Triple
from sgworld.world.sprites import Pixels


def false_of(rng: np.random.Generator, scene: Scene, triple: Triple) -> list[Triple]:
    """Triples that are false of a scene, each one change away from `triple`: roles swapped, two other classes, another end.

    A pair shows one class at most, so every other class is false of it. Left out: the swap of a symmetric class, and what the scene
    shows after all.
    """
    subject, predicate, object_ = triple
    made = [(object_, predicate, subject)]
    others = [p for p in PREDICATES if p != predicate and plausible(subject, p, object_)]
    made += [(subject, str(p), object_) for p in rng.choice(others, min(2, len(others)), replace=False)]
    others = [placed.name for placed in scene.objects if placed.name not in (subject, object_)]
    if others:
        other = str(rng.choice(others))
        made.append((subject, predicate, other) if rng.random() < 0.5 else (other, predicate, object_))
    return [each for each in made if not any(same(shown, each) for shown in scene.triples)]


def of_captions(pool: Sequence[Caption]) -> Callable[[np.random.Generator, int], Statements]:
    """Draws scenes of captions of the pool, one triple of each, and what is false of them."""

    def draw(rng: np.random.Generator, count: int) -> Statements:
        pictures: list[Pixels] = []
        true: list[str] = []
        false: list[tuple[int, str]] = []
        while len(pictures) < count:
            scene = compose(pool[int(rng.integers(len(pool)))], rng.random(SLOTS))
            if not scene.triples:
                continue
            triple = scene.triples[int(rng.integers(len(scene.triples)))]
            false += [(len(pictures), relational_prompt(*each)) for each in false_of(rng, scene, triple)]
            true.append(relational_prompt(*triple))
            pictures.append(render(scene))
        return Statements(np.stack(pictures), true, false)

    return draw


def unseen(seed: int, count: int) -> Statements:
    """Scenes with a held-out triple or combination, a triple of each, and of each one that is false: its swap where that is another
    statement, else another class.
    """
    rng = np.random.default_rng((seed, 3))
    pictures: list[Pixels] = []
    true: list[str] = []
    false: list[tuple[int, str]] = []
    for number in range(count):
        held = "combination" if number % 2 else "triple"
        scene = compose(sample_caption(rng, held=held, neutral=0.0), rng.random(SLOTS))
        triple = scene.triples[int(rng.integers(len(scene.triples)))]
        pictures.append(render(scene))
        true.append(relational_prompt(*triple))
        false.append((number, relational_prompt(*false_of(rng, scene, triple)[0])))
    return Statements(np.stack(pictures), true, false)
