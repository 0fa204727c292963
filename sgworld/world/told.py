"""How well a generator reads: what its rows of names tell of places, beside the scenes that come nearest to it."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import FluxPipeline
from torch import Tensor
from tqdm import tqdm

from sgworld.world.captions import sample_caption
from sgworld.world.examples import Lessons, cells, lessons
from sgworld.world.hearing import Sounds, levels_heard
from sgworld.world.recipe import BEHIND
from sgworld.world.rows import Reader, nearest_scenes
from sgworld.world.specification import Caption

SEED = 30_000
BATCH = 96


def agreement(told: Tensor, known: Lessons, captions: Sequence[Caption]) -> dict[str, dict[str, float]]:
    """By numbers of objects and relations said: captions, share of them all of whose objects are told within a cell, mean squared
    error of the features of places. `told` `[n, 18]` are the rows of `known`.
    """
    wanted = known.features["place"]
    away = (cells(told) - cells(wanted)).abs().amax(1)
    errors = (told - wanted).square().mean(1)
    kinds: dict[str, list[tuple[bool, float]]] = defaultdict(list)
    for number, caption in enumerate(captions):
        mine = known.samples == number
        kind = f"{len(caption.names)} objects, relations said: {len(caption.relations)}"
        kinds[kind].append((bool((away[mine] < 1).all()), float(errors[mine].mean())))
    return {
        kind: {
            "captions": len(each),
            "within_a_cell": float(np.mean([a for a, _ in each])),
            "error": float(np.mean([b for _, b in each])),
        }
        for kind, each in sorted(kinds.items())
    }


@torch.no_grad()
def told(models: Path, count: int) -> dict[str, Any]:
    """`agreement` of the generator in `models/mini-flux` with the scenes that come nearest, over captions and noises of a seed of
    its own.
    """
    pipeline = FluxPipeline.from_pretrained(models / "mini-flux")
    model, tokens = pipeline.transformer.float().eval(), pipeline.tokenizer_2.model_max_length
    reader = Reader(model, BEHIND, tokens)
    pool = [sample_caption(np.random.default_rng((SEED, index))) for index in range(count)]
    found, wanted, samples = [], [], []
    for start in tqdm(range(0, count, BATCH), desc="reading", unit="batch", mininterval=2):
        captions, noise, text, names = Sounds(pool[start : start + BATCH], pipeline, BATCH, SEED + start)[0]
        heard, places = reader.told(noise, text)
        known = lessons(names, nearest_scenes(captions, names, levels_heard(heard, names), places))
        found.append(places[known.samples, known.rows])
        wanted.append(known.features["place"])
        samples.append((captions, known.samples + start))
    known = Lessons(torch.cat([each for _, each in samples]), torch.zeros(0), {"place": torch.cat(wanted)})
    return agreement(torch.cat(found), known, [caption for captions, _ in samples for caption in captions])
