"""Noise for crops, where a generator draws one scene per noise: the one whose scene comes nearest to a crop, other noise that
means the same, and the channel that tells who is the subject.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from sgpipe.backbones.base import TextCondition
from sgpipe.backbones.denoiser import Denoiser
from sgpipe.backbones.images import decode
from sgpipe.backbones.rectified_flow import generator
from sgpipe.graphs.prompts import words
from sgpipe.optim.compiled import compile_blocks
from sgpipe.optim.precision import choose
from sgpipe.training.examples import Data, Example

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
            at = (row, channel // 4, 0, channel % 4 // 2, 0, channel % 2)
            means[at] = drawn[at]
    return (fresh - drawn + means).reshape(noise.shape)


def _of(channels: Tensor, number: Tensor) -> Tensor:
    """The packed channel `[B]` of each of `[B, C, h, 2, w, 2]`: `[B, h, w]`, a copy."""
    return channels[torch.arange(len(number)), number // 4, :, number % 4 // 2, :, number % 2]


def turned(noise: Tensor, channel: Tensor) -> Tensor:
    """Noise `[B, C, h, w]` with the sign of one packed channel `[B]` of each turned."""
    result = noise.clone()
    _channels(result)[torch.arange(len(channel)), channel // 4, :, channel % 4 // 2, :, channel % 2] = -_of(
        _channels(noise), channel
    )
    return result


@dataclass(frozen=True)
class Coupled:
    """A noise `[C, h, w]` and the mean squared error to its crop of what that is drawn as."""

    noise: Tensor
    error: float


class _Search:
    """The best noises so far of crops `[B, C, h, w]` under one prompt each."""

    def __init__(self, base: Denoiser, latents: Tensor, text: TextCondition, start: Tensor) -> None:
        self._base, self._latents, self._text = base, latents, text
        self.best, self.least = start, self._errors(start)
        self._count = 4 * latents.shape[1]

    def _errors(self, noise: Tensor) -> Tensor:
        with in_precision():
            velocity = self._base.velocity(noise, torch.ones(len(noise)), self._text, None)
        return (noise - velocity.float() - self._latents).square().flatten(1).mean(1)

    def _tried(self, noise: Tensor) -> None:
        wrong = self._errors(noise)
        self.best = torch.where((wrong < self.least)[:, None, None, None], noise, self.best)
        self.least = torch.minimum(wrong, self.least)

    def drawn(self, times: int, random: torch.Generator) -> None:
        """Try so many fresh noises."""
        for _ in range(times):
            self._tried(torch.randn(self._latents.shape, generator=random))

    def climbed(self) -> None:
        """Turn one channel after the other, and leave each as is better."""
        for channel in range(self._count):
            self._tried(turned(self.best, torch.full((len(self.best),), channel)))

    def stepped(self) -> None:
        """Turn the one channel whose turning helps most."""
        channels = [torch.full((len(self.best),), channel) for channel in range(self._count)]
        self._tried(turned(self.best, torch.stack([self._errors(turned(self.best, each)) for each in channels]).argmin(0)))


@torch.no_grad()
def coupled(
    base: Denoiser,
    data: Data,
    examples: Sequence[Example],
    encoded: Callable[[Sequence[str]], TextCondition],
    draws: int,
    known: Mapping[str, Coupled] = {},
    batch: int = 50,
    compiled: bool = True,
) -> dict[str, tuple[Coupled, Coupled]]:
    """Two noises for each example: one whose scene is near its crop where the graph is said as it is, one where subject and object
    of every triple change places. `known` are some of the first.

    The generator's captions leave roles open, so that both sentences may be drawn as the crop, and what the noise says of *the
    first said* differs between the two: together they tell nothing of who is the subject, and the graph has to.
    """
    if compiled:
        compile_blocks(base.transformer)
    random, found = generator("coupling"), dict[str, tuple[Coupled, Coupled]]()
    examples = sorted(examples, key=lambda each: (each.triple_id in known, len(each.graph.triples)))
    filled = [*examples, *examples[: -len(examples) % batch]]
    for start in tqdm(range(0, len(filled), batch), desc="coupling", unit="batch"):
        part = filled[start : start + batch]
        latents = data.latents.latents([each.triple_id for each in part])
        drawn = torch.randn(latents.shape, generator=random)
        begun = [known[each.triple_id].noise if each.triple_id in known else z for each, z in zip(part, drawn, strict=True)]
        said = _Search(base, latents, encoded([words(each.graph) for each in part]), torch.stack(begun))
        if not all(each.triple_id in known for each in part):
            said.drawn(draws - 1, random)
            said.climbed()
        turned_ = _Search(base, latents, encoded([words(each.graph.reversed()) for each in part]), said.best)
        for _ in range(max(len(each.graph.triples) for each in part)):
            turned_.stepped()
        pairs = [
            tuple(Coupled(z, float(error)) for z, error in zip(each.best, each.least, strict=True)) for each in (said, turned_)
        ]
        found |= {each.triple_id: pair for each, pair in zip(part, zip(*pairs, strict=True), strict=True)}
    return found


@torch.no_grad()
def reversing(base: Denoiser, data: Data, noises: dict[str, Tensor], vae: Any, each: int = 24) -> dict[str, int]:
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
            noise = found if channel is None else turned(found, torch.full((len(found),), channel))
            with in_precision():
                drawn = noise - base.velocity(noise, at, text, None).float()
            images = np.stack(list(decode(base.family, vae, drawn)))
            shares.append(float((reader.scores(images, statements) == 1).mean()))
        if shares[0] < 0.5 < max(shares[1:]):
            channels[predicate] = int(np.argmax(shares[1:]))
    return channels
