"""What the reader and the world are worth, on ground truth (`metrics/world.json`)."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter

from sgpipe.relations.predicates import PREDICATES
from sgworld.world.captions import class_shares, known_by_names, sample_caption, sample_of_class
from sgworld.world.classes import open_triples
from sgworld.world.compose import compose
from sgworld.world.raster import render
from sgworld.world.reader import Reading, read
from sgworld.world.reading import same
from sgworld.world.specification import SLOTS, Caption, Scene
from sgworld.world.sprites import NAMES, Pixels

BLUR, NOISE = 0.5, 5.0
"""Standard deviations of a decoder's softness (pixels) and noise (0–255): together 31 dB on these images."""
RELIABLE = 0.98


def softened(images: Pixels, rng: np.random.Generator) -> Pixels:
    """Images `[N, 64, 64, 3]` blurred and with noise."""
    soft = gaussian_filter(images.astype(np.float32), (0, BLUR, BLUR, 0))
    return (soft + rng.normal(0, NOISE, soft.shape)).round().clip(0, 255).astype(np.uint8)


def psnr(images: Pixels, others: Pixels) -> float:
    """Mean over images of 10 log₁₀(255² / MSE), dB."""
    errors = np.square(images.astype(np.float32) - others.astype(np.float32)).mean((1, 2, 3))
    return float((10 * np.log10(255.0**2 / errors)).mean())


def drawn(seed: int, per_class: int) -> list[Scene]:
    """Scenes of every class equally often, with no or one more triple beside it, and 2 to 4 objects."""
    scenes = []
    for number, predicate in enumerate(PREDICATES):
        rng = np.random.default_rng((seed, number))
        scenes += [compose(sample_of_class(rng, predicate), rng.random(SLOTS)) for _ in range(per_class)]
    return scenes


def figures(scenes: Sequence[Scene], readings: Sequence[Reading]) -> dict[str, Any]:
    """Share of triples read right and of abstentions by class; of images whose objects are exact; and whose objects are doubled."""
    right: dict[str, list[bool]] = defaultdict(list)
    silent: dict[str, list[bool]] = defaultdict(list)
    exact, doubled, whole = [], [], []
    for scene, reading in zip(scenes, readings, strict=True):
        exact.append(sorted(each.name for each in scene.objects) == sorted(each.name for each in reading.objects))
        doubled.append(bool(reading.duplicates))
        found = [reading.between(s, o) for s, _, o in scene.triples]
        hits = [each is not None and same(each, wanted) for each, wanted in zip(found, scene.triples, strict=True)]
        whole.append(all(hits))
        for (_, predicate, _), hit, each in zip(scene.triples, hits, found, strict=True):
            right[predicate].append(hit)
            silent[predicate].append(each is None)
    by_class = {name: float(np.mean(right[name])) for name in PREDICATES}
    return {
        "accuracy_by_class": by_class,
        "abstentions_by_class": {name: float(np.mean(silent[name])) for name in PREDICATES},
        "classes_reliable": sum(value >= RELIABLE for value in by_class.values()),
        "triples_right": float(np.mean([hit for several in right.values() for hit in several])),
        "images_all_triples_right": float(np.mean(whole)),
        "objects_exact": float(np.mean(exact)),
        "duplicates_false": float(np.mean(doubled)),
        "triples": sum(map(len, right.values())),
    }


def _names_alone() -> dict[str, float]:
    """How often the likeliest class by the ordered names is the class, and the share of the most frequent class."""
    _, share, shares = class_shares()
    return {"class_known_by_names": known_by_names(), "most_frequent_class": float((share @ shares).max())}


def _neutral(seed: int, count: int = 600) -> dict[str, float]:
    """Of pairs of names, the largest share that a class has among scenes of the neutral caption; mean and maximum over pairs."""
    rng, largest = np.random.default_rng((seed, 99)), []
    pairs = [("cat", "dog"), ("cup", "person"), ("car", "tree"), ("chair", "dog"), ("book", "clock")]
    for pair in pairs:
        scenes = [compose(Caption(pair), rng.random(SLOTS)) for _ in range(count)]
        largest.append(max(Counter(scene.triples[0][1] for scene in scenes).values()) / count)
    options = [len({p for p, _ in open_triples(a, b)}) for a in NAMES for b in NAMES if a < b]
    return {
        "neutral_largest_class": float(np.max(largest)),
        "neutral_largest_class_mean": float(np.mean(largest)),
        "classes_of_a_pair_mean": float(np.mean(options)),
        "classes_of_a_pair_least": float(np.min(options)),
    }


def roles(seed: int, count: int) -> float:
    """Share of scenes of captions whose roles are open in which the first name is the subject."""
    rng = np.random.default_rng((seed, 98))
    first: list[bool] = []
    while len(first) < count:
        caption = sample_caption(rng, neutral=0.0, objects=2)
        a, p, b = caption.relations[0]
        if {(p, a), (p, b)} <= set(open_triples(a, b)):
            first.append(compose(caption, rng.random(SLOTS)).triples[0][0] == a)
    return float(np.mean(first))


def certify(seed: int, per_class: int) -> dict[str, Any]:
    """All figures."""
    scenes = drawn(seed, per_class)
    images = np.stack([render(scene) for scene in scenes])
    soft = softened(images, np.random.default_rng(seed))
    return {
        "images": len(images),
        "clean": figures(scenes, read(images)),
        "softened": {"psnr_db": psnr(images, soft), **figures(scenes, read(soft))},
        "open_roles_first_is_subject": roles(seed, 400),
        **_names_alone(),
        **_neutral(seed),
    }
