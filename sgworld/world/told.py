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
from sgworld.world.examples import Lessons, lessons
from sgworld.world.hearing import Sounds, levels_heard
from sgworld.world.recipe import BEHIND
from sgworld.world.rows import Reader, farthest, nearest_scenes
from sgworld.world.specification import Caption

SEED = 30_000
BATCH = 96


def agreement(told: Tensor, known: Lessons, captions: Sequence[Caption]) -> dict[str, dict[str, float]]:
    """By numbers of objects and relations said: captions, shares of them all of whose objects are told within a cell and within a
    quarter of one, mean squared error of the features of places. `told` `[n, 18]` are the rows of `known`.
    """
    far = farthest(told, known)
    errors = (told - known.features["place"]).square().mean(1)
    kinds: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for number, caption in enumerate(captions):
        kind = f"{len(caption.names)} objects, relations said: {len(caption.relations)}"
        kinds[kind].append((float(far[number]), float(errors[known.samples == number].mean())))
    return {
        kind: {
            "captions": len(each),
            "within_a_cell": float(np.mean([cells < 1 for cells, _ in each])),
            "within_a_quarter": float(np.mean([cells <= 0.25 for cells, _ in each])),
            "error": float(np.mean([error for _, error in each])),
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
