"""A bank of drawn pictures, one pair of objects each, from which every embedded checkpoint is trained."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from sgpipe.errors import DataError
from sgpipe.miniature.scenes import draw_triple, pair_scene, render
from sgpipe.runs.atomic import atomic_path, write_json
from sgpipe.scene_graphs.predicates import PREDICATES, neutral_prompt, relational_prompt

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


def draw_bank(folder: Path, count: int, seed: int) -> Bank:
    """Draw `count` pictures of training triples into `folder`, or open them if that was done before.

    Picture i depends on (seed, i) alone.
    """
    pixels, facts = folder / "pictures.npy", folder / "bank.json"
    if not facts.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        triples: list[Triple] = []
        with atomic_path(pixels) as temporary:
            pictures = np.lib.format.open_memmap(temporary, "w+", np.uint8, (count, SIDE, SIDE, 3))
            for index in tqdm(range(count), desc="drawing pictures", unit="picture", mininterval=2):
                rng = np.random.default_rng((seed, index))
                triples.append(sample_triple(rng, unseen=False))
                pictures[index] = render(pair_scene(rng, *triples[-1]))
            pictures.flush()
        write_json({"count": count, "seed": seed, "triples": triples}, facts)
    stored = msgspec.json.decode(facts.read_bytes())
    if (stored["count"], stored["seed"]) != (count, seed):
        raise DataError(
            f"{folder}: holds {stored['count']} pictures of seed {stored['seed']}, wanted {count} of seed {seed}; "
            "remove the folder or name another"
        )
    return Bank(np.load(pixels, mmap_mode="r"), [tuple(triple) for triple in stored["triples"]])


def row_chances(triples: Sequence[Triple], rarity: float) -> NDArray[np.float64]:
    """Chance of each picture to be drawn, proportional to (1/n(subject) + 1/n(object))^rarity, n the pictures that show a name.

    Classes that only a few names can join make those names frequent; `rarity` 1 gives a rare name about as many looks as others.
    """
    shown = Counter(name for subject, _, object_ in triples for name in (subject, object_))
    weights = np.array([1 / shown[subject] + 1 / shown[object_] for subject, _, object_ in triples]) ** rarity
    return weights / weights.sum()


def to_unit(pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Pixels 0–255 `[B, H, W, 3]` as values in −1…1 `[B, 3, H, W]`, copied out of a memory map."""
    return np.ascontiguousarray(pictures.transpose(0, 3, 1, 2), dtype=np.float32) / 127.5 - 1.0
