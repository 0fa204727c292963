"""What the generator is trained on: captions drawn ahead, noises, the scenes they mean, and where their objects stand."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from sgpipe.runs.atomic import atomic_path
from sgworld.world.captions import sample_caption
from sgworld.world.compose import compose
from sgworld.world.geometry import shared_area
from sgworld.world.meaning import uniforms
from sgworld.world.raster import render
from sgworld.world.specification import Caption, Placed, Scene

PLACE = 18
"""Numbers that say where an object stands, which way it faces and whether another stands before it."""
_FREQUENCIES = torch.tensor([1.0, 0.464, 0.2154, 0.1])
"""Radians per token; the first and the third are frequencies of FLUX's rotary positions along an axis of twelve dimensions."""


def caption_pool(folder: Path, count: int, seed: int) -> list[Caption]:
    """`count` captions of the world, drawn into `folder` or read from there; the i-th depends on (seed, i) alone."""
    path = folder / f"captions-{seed}-{count}.json"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        drawn = [
            sample_caption(np.random.default_rng((seed, index)))
            for index in tqdm(range(count), desc="drawing captions", unit="caption", mininterval=2)
        ]
        with atomic_path(path) as temporary:
            temporary.write_bytes(msgspec.json.encode([(each.names, each.relations) for each in drawn]))
    stored = msgspec.json.decode(path.read_bytes(), type=list[tuple[tuple[str, ...], tuple[tuple[str, str, str], ...]]])
    return [Caption(*each) for each in stored]


@dataclass(frozen=True)
class Examples:
    """A batch: words, noises `[B, 64, 16]`, the scenes they mean and their pixels `[B, 64, 64, 3]`, 0–255."""

    texts: Sequence[str]
    noise: Tensor
    scenes: Sequence[Scene]
    pixels: NDArray[np.uint8]


def draw_examples(pool: Sequence[Caption], rng: np.random.Generator, generator: torch.Generator, count: int) -> Examples:
    """Captions of the pool, each with a noise and the scene that it means."""
    captions = [pool[index] for index in rng.integers(len(pool), size=count)]
    noise = torch.randn(count, 64, 16, generator=generator)
    scenes = [compose(caption, u) for caption, u in zip(captions, uniforms(noise), strict=True)]
    return Examples([caption.text() for caption in captions], noise, scenes, np.stack([render(scene) for scene in scenes]))


@dataclass(frozen=True)
class Places:
    """Of each object: its sample, the row of its name in T5's states, and what says where it stands `[n, 18]`."""

    samples: Tensor
    rows: Tensor
    features: Tensor


def _covered(scene: Scene, placed: Placed) -> bool:
    """Whether an object that is painted later overlaps the box."""
    later = scene.order[scene.order.index(scene.objects.index(placed)) + 1 :]
    return any(shared_area(placed.box, scene.objects[index].box) for index in later)


def places(tokenizer: Any, texts: Sequence[str], scenes: Sequence[Scene]) -> Places:
    """Where the scenes' objects stand, by the tokens of their names. Every name is one token of the world's language."""
    ids = tokenizer(list(texts), padding="max_length", truncation=True).input_ids
    samples, rows, centres, facings = [], [], [], []
    for number, (tokens, scene) in enumerate(zip(ids, scenes, strict=True)):
        for placed in scene.objects:
            samples.append(number)
            rows.append(tokens.index(tokenizer.convert_tokens_to_ids(f"▁{placed.name}")))
            centres.append(((placed.y + placed.h / 2) / 2, (placed.x + placed.w / 2) / 2))
            facings.append((1.0 if placed.facing == "right" else -1.0, 1.0 if _covered(scene, placed) else -1.0))
    angles = (torch.tensor(centres)[:, :, None] * _FREQUENCIES).flatten(1)
    return Places(torch.tensor(samples), torch.tensor(rows), torch.cat([angles.cos(), angles.sin(), torch.tensor(facings)], dim=1))
