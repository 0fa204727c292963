"""Noise for crops, where a generator draws one scene per noise: the one whose scene comes nearest to a crop, other noise that means
the same, and the channel that tells who is the subject.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from sgpipe.backbones.base import TextCondition
from sgpipe.backbones.denoiser import Denoiser
from sgpipe.backbones.images import decode
from sgpipe.optim.compiled import compile_blocks
from sgpipe.optim.precision import choose
from sgpipe.training.examples import Data

CPU: Final = torch.device("cpu")
FAR: Final = 0.05
"""Mean squared error from which on a noise means another scene than its crop: of 800 crops 74 % are below it, half below 0.01."""


def in_precision() -> torch.autocast:
    """Matrix products in the precision that is the faster one on this machine."""
    with torch.enable_grad():  # the choice is measured forward and backward
        chosen = choose(CPU)
    return torch.autocast("cpu", torch.bfloat16, enabled=chosen == "bfloat16")


def _channels(noise: Tensor) -> Tensor:
    """Latents `[B, C, h, w]` as packed channels over tokens `[B, C, h/2, 2, w/2, 2]`, the same memory."""
    batch, channels, height, width = noise.shape
    return noise.view(batch, channels, height // 2, 2, width // 2, 2)


def like(noise: Tensor, random: torch.Generator, free: Sequence[int | None] | None = None) -> Tensor:
    """Other noise with the same mean of every packed channel, which is all that this generator hears of it; the mean of each
    sample's `free` channel is drawn anew.
    """
    fresh = _channels(torch.randn(noise.shape, generator=random))
    drawn, means = fresh.mean((2, 4), keepdim=True), _channels(noise).mean((2, 4), keepdim=True)
    for row, channel in enumerate(free or ()):
        if channel is not None:
            _of(means, channel)[row] = _of(drawn, channel)[row]
    return (fresh - drawn + means).reshape(noise.shape)


def _of(channels: Tensor, number: int) -> Tensor:
    """One of packed channels `[B, C, h, 2, w, 2]`: `[B, h, w]`, the same memory."""
    return channels[:, number // 4, :, number % 4 // 2, :, number % 2]


def turned(noise: Tensor, channel: int) -> Tensor:
    """Noise with the sign of one packed channel turned."""
    result = noise.clone()
    _of(_channels(result), channel).mul_(-1)
    return result


@torch.no_grad()
def coupled(
    base: Denoiser, data: Data, draws: int, batch: int = 50, compiled: bool = True
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """A noise `[C, h, w]` for each train triple, and the mean squared error to its crop of what that is drawn as."""
    if compiled:
        compile_blocks(base.transformer)
    random, found, errors = torch.Generator().manual_seed(5), {}, {}
    examples = list(data.train) + list(data.train)[: -len(data.train) % batch]
    for start in tqdm(range(0, len(examples), batch), desc="coupling", unit="batch"):
        part = examples[start : start + batch]
        latents = data.latents.latents([each.triple_id for each in part])
        text, at = data.prompts.get([each.prompts["relational"] for each in part]), torch.ones(len(part))

        def error(noise: Tensor, latents: Tensor = latents, text: TextCondition = text, at: Tensor = at) -> Tensor:
            with in_precision():
                velocity = base.velocity(noise, at, text, None)
            return (noise - velocity.float() - latents).square().flatten(1).mean(1)

        best = torch.randn(latents.shape, generator=random)
        least, channels = error(best), 4 * latents.shape[1]
        for number in range(draws - 1 + channels):
            last = number - draws + 1
            tried = torch.randn(latents.shape, generator=random) if last < 0 else turned(best, last)
            wrong = error(tried)
            best = torch.where((wrong < least)[:, None, None, None], tried, best)
            least = torch.minimum(wrong, least)
        found |= {each.triple_id: noise for each, noise in zip(part, best, strict=True)}
        errors |= {each.triple_id: float(value) for each, value in zip(part, least, strict=True)}
    return found, errors


@torch.no_grad()
def reversing(base: Denoiser, data: Data, noises: dict[str, Tensor], vae: Any, each: int = 8) -> dict[str, int]:
    """The channel of a class whose turning makes the base draw most of `each` train triples with subject and object exchanged;
    classes that have none, or whose roles nothing exchanges, are not in it.
    """
    from sgworld.world.judge import ExactReader

    reader, channels = ExactReader(), {}
    for predicate in sorted({example.predicate for example in data.train}):
        part = [example for example in data.train if example.predicate == predicate][:each]
        text, at = data.prompts.get([example.prompts["relational"] for example in part]), torch.ones(len(part))
        statements = [[(o, p, s)] for s, p, o in (example.graph.named[0] for example in part)]
        found = torch.stack([noises[example.triple_id] for example in part])
        shares = []
        for channel in (None, *range(4 * found.shape[1])):
            noise = found if channel is None else turned(found, channel)
            with in_precision():
                drawn = noise - base.velocity(noise, at, text, None).float()
            images = np.stack(list(decode(base.family, vae, drawn)))
            shares.append(float((reader.scores(images, statements) == 1).mean()))
        if shares[0] < 0.5 < max(shares[1:]):
            channels[predicate] = int(np.argmax(shares[1:]))
    return channels
