"""What the generator is trained on: captions drawn ahead, and what the rows of names are taught of a scene, step by step.

From what a noise says to where an object stands is far: a chain of relations is to be added up, and the whole brought into the
image. So the rows of names tell, behind one block after another, what the noise says, how each object stands to the first that it
is related to, where it stands in the frame around all that hang together, and where in the image.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import torch
from torch import Tensor
from tqdm.contrib.concurrent import process_map

from sgpipe.relations.predicates import PREDICATE_INDEX, PREDICATES
from sgpipe.runs.atomic import atomic_path
from sgworld.world.captions import sample_caption
from sgworld.world.geometry import shared_area
from sgworld.world.hearing import Named
from sgworld.world.specification import Caption, Placed, Scene
from sgworld.world.sprites import GRID
from sgworld.world.wishes import Stand

FEATURES: Final = {"rough": slice(110, 128), "place": slice(110, 128)}
"""Which features of the rows of names hold what, beside the first 16, which hold what is heard."""
WIDTHS: Final = {"link": 17 + len(PREDICATES), "frame": 32}
"""How many numbers a linear map of all features must give, of what has none for itself."""
FREQUENCIES = torch.tensor([1.0, 0.464, 0.2154, 0.1])
"""Radians per token; the first and the third are frequencies of FLUX's rotary positions along an axis of twelve dimensions."""


CHUNK: Final = 500
"""Captions that a process draws at a time; tqdm counts chunks."""


def _drawn(seed: tuple[int, int]) -> Caption:
    return sample_caption(np.random.default_rng(seed))


def caption_pool(folder: Path, count: int, seed: int) -> list[Caption]:
    """`count` captions of the world, drawn into `folder` by all cores or read from there; the i-th depends on (seed, i) alone."""
    path = folder / f"captions-{seed}-{count}.json"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        seeds = [(seed, index) for index in range(count)]
        drawn = process_map(_drawn, seeds, desc="drawing captions", unit="chunk", total=-(-count // CHUNK), chunksize=CHUNK)
        with atomic_path(path) as temporary:
            temporary.write_bytes(msgspec.json.encode([(each.names, each.relations) for each in drawn]))
    stored = msgspec.json.decode(path.read_bytes(), type=list[tuple[tuple[str, ...], tuple[tuple[str, str, str], ...]]])
    return [Caption(*each) for each in stored]


@dataclass(frozen=True)
class Lessons:
    """Of each object: its sample, the row of its name in T5's states, and what it shall tell `[n, width]`.

    `link`: of the first relation that the object is in, how far from its middle the other's is,
    whether it is the subject (1 or −1), and the class (1 at its place, else 0); 0 throughout where it is in none. `frame`: from the
    corner of the box around all objects that hang together to its middle, and that box's height and width. `place`: its middle in
    the image, which way it faces and whether another stands before it; `rough` is the same some blocks before.
    """

    samples: Tensor
    rows: Tensor
    features: Mapping[str, Tensor]


def _covered(scene: Scene, placed: Placed) -> bool:
    """Whether an object that is painted later overlaps the box."""
    later = scene.order[scene.order.index(scene.objects.index(placed)) + 1 :]
    return any(shared_area(placed.box, scene.objects[index].box) for index in later)


def _first(scene: Scene, index: int) -> tuple[int, str, int] | None:
    """The first relation that an object is in."""
    return next((each for each in scene.relations if index in (each[0], each[2])), None)


def _connected(scene: Scene, index: int) -> set[int]:
    """The objects that hang together with one, itself among them."""
    found = {index}
    for _ in scene.relations:
        found |= {each for s, _, o in scene.relations if {s, o} & found for each in (s, o)}
    return found


def _turned(lengths: Sequence[Sequence[float]]) -> Tensor:
    """Lengths `[n, k]` in cells as cosines and sines `[n, 8 k]`."""
    angles = (torch.tensor(lengths)[:, :, None] / 2 * FREQUENCIES).flatten(1)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


_FINE = torch.arange(0.0, GRID + 0.01, 0.125)
"""Along one axis, cells, where `cells` looks."""


def cells(places: Tensor) -> Tensor:
    """Middles `[n, 2]` (y, x) in cells, to an eighth, that features of places `[n, 18]` tell: those whose own come nearest."""
    axes = places[:, :16].unflatten(1, (2, 2, -1))
    angles = _FINE[:, None] / 2 * FREQUENCIES
    likeness = axes[:, 0] @ angles.cos().T + axes[:, 1] @ angles.sin().T
    return _FINE[likeness.argmax(-1)]


def told_stands(told: Tensor, names: Named, captions: Sequence[Caption]) -> list[dict[str, Stand]]:
    """How each caption's objects are told to stand, by name, of what all text rows tell of places `[B, T, 18]`."""
    places = told[names.samples, names.rows]
    stands = iter(Stand(x, y) for y, x in cells(places).tolist())
    return [{name: next(stands) for name in caption.names} for caption in captions]


def lessons(names: Named, scenes: Sequence[Scene]) -> Lessons:
    """What the rows of the scenes' names are taught."""
    links: list[tuple[float, float]] = []
    frames, middles, facings = [], [], []
    told = torch.zeros(len(names.rows), 1 + len(PREDICATES))
    for scene in scenes:
        centres = [(placed.y + placed.h / 2, placed.x + placed.w / 2) for placed in scene.objects]
        for index, placed in enumerate(scene.objects):
            relation, together = _first(scene, index), [scene.objects[each] for each in _connected(scene, index)]
            (y, x), other_y, other_x = centres[index], *centres[index]
            if relation is not None:
                subject, predicate, object_ = relation
                other_y, other_x = centres[subject + object_ - index]
                told[len(links), 0] = 1.0 if index == subject else -1.0
                told[len(links), 1 + PREDICATE_INDEX[predicate]] = 1.0
            links.append((other_y - y, other_x - x))
            top, left = min(each.y for each in together), min(each.x for each in together)
            bottom, right = max(each.y + each.h for each in together), max(each.x + each.w for each in together)
            frames.append((y - top, x - left, float(bottom - top), float(right - left)))
            middles.append((y, x))
            facings.append((1.0 if placed.facing == "right" else -1.0, 1.0 if _covered(scene, placed) else -1.0))
    features = {
        "link": torch.cat([_turned(links) * told[:, :1].abs(), told], dim=1),
        "frame": _turned(frames),
        "place": torch.cat([_turned(middles), torch.tensor(facings)], dim=1),
    }
    return Lessons(names.samples, names.rows, features | {"rough": features["place"]})
