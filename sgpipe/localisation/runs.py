"""Forwards and samples of what runs are told, with functions around blocks: batches of `Conditions`' samples at given latents."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sgpipe.arms.generation import GraphGenerator
from sgpipe.backbones.base import TextCondition
from sgpipe.backbones.block_states import Around, BlockRows, block_states, blocks_of, reading, text_places
from sgpipe.backbones.images import decode
from sgpipe.backbones.rectified_flow import euler_step, is_within, noise
from sgpipe.localisation.pairs import RUNS, Conditions, take

Arounds = Mapping[int, Around]


@dataclass(frozen=True)
class Recorded:
    """A forward without intervention: velocity `[B, C, h, w]`, and what each block hands on."""

    velocity: Tensor
    blocks: list[BlockRows]


@dataclass(frozen=True)
class Runs:
    """Runs of items, whose samples are numbered as in `Conditions`; `steps` are Euler steps, `resolution` is in pixels.

    Where an adapter does not work (`ArmModel.times`) the base steps, as in sampling; there nothing tells the runs apart.
    """

    generator: GraphGenerator
    conditions: Conditions
    seeds: Sequence[int]
    """Of the noise of each item."""
    resolution: int
    steps: int
    batch_size: int

    @property
    def items(self) -> int:
        return len(self.seeds)

    @cached_property
    def count(self) -> int:
        """Blocks of the transformer."""
        return len(blocks_of(self.generator.denoiser))

    @cached_property
    def times(self) -> list[float]:
        """`[steps + 1]`, from 1 to 0."""
        denoiser = self.generator.denoiser
        return denoiser.family.sigmas(self.steps, denoiser.layout, self.resolution, denoiser.scheduler).tolist()

    @cached_property
    def active(self) -> list[int]:
        """Steps at which the runs are told different things."""
        arm = self.generator.adapter
        return [step for step in range(self.steps) if arm is None or is_within(self.times[step], *arm.times)]

    @cached_property
    def text_places(self) -> Tensor:
        """Where each row of a condition stands among a block's text rows, `[R·P, T]`."""
        return text_places(self.generator.denoiser.family, self.conditions.told)

    @cached_property
    def _empty(self) -> TextCondition | None:
        guided = self.generator.denoiser.layout.classifier_free(self.generator.guidance)
        return self.generator.texts.prompts([""]).to(self.generator.denoiser.device) if guided else None

    def start(self, samples: Tensor) -> Tensor:
        """Latents `[B, C, h, w]` at the first step; runs of an item share their noise."""
        denoiser = self.generator.denoiser
        dtype = torch.float32 if denoiser.family.float32_latents else denoiser.dtype
        drawn = noise([self.seeds[each % self.items] for each in samples.tolist()], denoiser.layout.latent_shape(self.resolution))
        return drawn.to(denoiser.device, dtype)

    def velocity(
        self,
        latents: Tensor,
        step: int,
        samples: Tensor,
        around: Arounds | None = None,
        pooled_of: Tensor | None = None,
        grad: bool = False,
    ) -> Tensor:
        """v `[B, C, h, w]` of latents at a step, as samples `[B]` are told there; guided as the generator is.

        The pooled vectors are those of samples `pooled_of` `[B]`, where they are given. With `grad` gradients flow.
        """
        generator, arm = self.generator, self.generator.adapter
        works = step in self.active
        given = take(self.conditions.told if works else self.conditions.plain, samples, pooled_of)
        t = torch.full([len(latents)], self.times[step])
        with (
            torch.set_grad_enabled(grad),
            nullcontext() if works or arm is None else arm.off(),
            block_states(generator.denoiser, self.resolution, around or {}) as paused,
        ):
            return generator.denoiser.velocity(latents, t, given, generator.guidance, self._empty, paused)

    def next(self, latents: Tensor, velocity: Tensor, step: int) -> Tensor:
        """Latents at the next step."""
        return euler_step(latents, velocity, self.times[step], self.times[step + 1])

    def record(self, latents: Tensor, step: int, samples: Tensor) -> Recorded:
        """A forward and the rows of every block, `batch_size` samples at a time."""
        parts = []
        for part in torch.arange(len(samples)).split(self.batch_size):
            states: list[BlockRows] = []
            made = self.velocity(latents[part], step, samples[part], dict.fromkeys(range(self.count), reading(states)))
            parts.append(Recorded(made, states))
        return Recorded(
            torch.cat([part.velocity for part in parts]),
            [_cat([part.blocks[index] for part in parts]) for index in range(self.count)],
        )

    def images(self, latents: Tensor) -> NDArray[np.uint8]:
        """Images `[B, H, W, 3]`, 0–255, `batch_size` at a time."""
        family, vae = self.generator.denoiser.family, self.generator.vae
        with torch.no_grad():
            return np.concatenate([decode(family, vae, part) for part in latents.split(self.batch_size)])


def sample_of(runs: Runs, run: str) -> Tensor:
    """The numbers `[items]` of one run's samples."""
    return RUNS.index(run) * runs.items + torch.arange(runs.items)


def _cat(parts: Sequence[BlockRows]) -> BlockRows:
    texts = [part.text for part in parts if part.text is not None]
    return BlockRows(torch.cat([part.image for part in parts]), torch.cat(texts) if texts else None)
