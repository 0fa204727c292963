"""A bank of drawn pictures, one pair of objects each, from which every embedded checkpoint is trained."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from sgpipe.errors import DataError
from sgpipe.relations.predicates import PREDICATES, neutral_prompt, relational_prompt
from sgpipe.runs.atomic import atomic_path, write_json
from sgworld.scenes import Scene, draw_triple, every_scene, every_triple, pair_scene, render

Triple = tuple[str, str, str]
SIDE = 64
"""Side of a picture, pixels."""
NEUTRAL = 0.4
"""Share of captions that name the two objects alone."""
_HELD_OUT_ONE_IN = 16


def held_out(triple: Triple) -> bool:
    """Whether no training picture may show this triple: one in 16 by a hash of the unordered pair and the predicate."""
    first, second = sorted((triple[0], triple[2]))
    digest = hashlib.sha256(f"{first}|{triple[1]}|{second}".encode()).digest()
    return digest[0] % _HELD_OUT_ONE_IN == 0


def sample_triple(rng: np.random.Generator, *, unseen: bool, predicate: str | None = None) -> Triple:
    """A triple, its class uniform over the 24 unless given; `unseen` tells on which side of `held_out` it stands.

    A class all of whose few pairs stand on the other side is drawn anew; a given one of that kind is an error.
    """
    for _ in range(10_000):
        triple = draw_triple(rng, predicate or str(rng.choice(PREDICATES)))
        if held_out(triple) == unseen:
            return triple
    raise DataError(f"{predicate}: no pair of objects is {'held out' if unseen else 'left for training'}")


def caption(rng: np.random.Generator, triple: Triple, neutral: bool) -> str:
    """A caption that leaves the roles open: both mention orders are equally frequent; a neutral one names no relation."""
    first, predicate, second = triple if rng.random() < 0.5 else triple[::-1]
    if neutral:
        return neutral_prompt(first, second)
    return relational_prompt(first, predicate, second)


@dataclass(frozen=True)
class Bank:
    """Pictures `[N, 64, 64, 3]` (0–255, memory-mapped) and the triple that each shows."""

    pictures: NDArray[np.uint8]
    triples: Sequence[Triple]


def _open_bank(folder: Path, of: Mapping[str, Any], count: int, shown: Iterator[tuple[Triple, Scene]]) -> Bank:
    """The `count` pictures of `shown` in `folder`, drawn unless they are there; `of` says what they are of."""
    pixels, facts = folder / "pictures.npy", folder / "bank.json"
    if not facts.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        triples: list[Triple] = []
        with atomic_path(pixels) as temporary:
            pictures = np.lib.format.open_memmap(temporary, "w+", np.uint8, (count, SIDE, SIDE, 3))
            bar = tqdm(shown, total=count, desc="drawing pictures", unit="picture", mininterval=2)
            for index, (triple, scene) in enumerate(bar):
                triples.append(triple)
                pictures[index] = render(scene)
            pictures.flush()
        write_json({**of, "triples": triples}, facts)
    stored = msgspec.json.decode(facts.read_bytes())
    held = {name: stored.get(name) for name in of}
    if held != of:
        raise DataError(f"{folder}: holds pictures of {held}, wanted {dict(of)}; remove the folder or name another")
    return Bank(np.load(pixels, mmap_mode="r"), [tuple(triple) for triple in stored["triples"]])


def draw_bank(folder: Path, count: int, seed: int) -> Bank:
    """Draw `count` pictures of training triples into `folder`, or open them if that was done before.

    Picture i depends on (seed, i) alone.
    """

    def one(index: int) -> tuple[Triple, Scene]:
        rng = np.random.default_rng((seed, index))
        triple = sample_triple(rng, unseen=False)
        return triple, pair_scene(rng, *triple)

    return _open_bank(folder, {"count": count, "seed": seed}, count, map(one, range(count)))


def whole_bank(folder: Path) -> Bank:
    """Every picture of every training triple, drawn into `folder`, or opened if that was done before."""
    scenes: list[tuple[Triple, Scene]] = [
        (triple, scene)
        for predicate in PREDICATES
        for triple in every_triple(predicate)
        if not held_out(triple)
        for scene in every_scene(*triple)
    ]
    return _open_bank(folder, {"count": len(scenes), "seed": None}, len(scenes), iter(scenes))


def row_chances(triples: Sequence[Triple], rarity: float) -> NDArray[np.float64]:
    """Chance of each picture to be drawn: classes by the root of their pictures, within them names by how rarely they are shown.

    Proportional to 1/√n(class) · (1/n(subject) + 1/n(object))^rarity, n(class) the pictures of its class, n(name) how often drawing
    by class shows a name. (Drawn alike, classes of few pictures are known by heart.) Classes that only a few names can join make
    those frequent; `rarity` 1 brings all names near one another.
    """
    of_class = Counter(predicate for _, predicate, _ in triples)
    weights = np.array([of_class[predicate] ** -0.5 for _, predicate, _ in triples])
    shown: Counter[str] = Counter()
    for (subject, _, object_), weight in zip(triples, weights, strict=True):
        shown[subject] += weight
        shown[object_] += weight
    weights *= np.array([1 / shown[subject] + 1 / shown[object_] for subject, _, object_ in triples]) ** rarity
    return weights / weights.sum()


def to_unit(pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Pixels 0–255 `[B, H, W, 3]` as values in −1…1 `[B, 3, H, W]`, copied out of a memory map."""
    return np.ascontiguousarray(pictures.transpose(0, 3, 1, 2), dtype=np.float32) / 127.5 - 1.0
