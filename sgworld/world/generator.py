"""Training of the world's FLUX: a rectified flow from the noise that means a scene to that scene.

A noise means the scene that the generator itself reads in it (`rows.Reader`), so that what is to be drawn stands in the rows of
names before the image rows begin. What has been learned of reading is held while the rest learns to draw; a part of each batch is
led by the model's own Euler steps, as in sampling.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, FluxPipeline, FluxTransformer2DModel
from torch import Tensor
from torch.utils.data import Dataset

from sgpipe.optim.compiled import compile_blocks
from sgpipe.runs.processes import Processes
from sgworld.training import ALONE, Ahead, quick_products, step_generator, train_model
from sgworld.vae import encode
from sgworld.world.hearing import Encoded, Sounds
from sgworld.world.raster import render
from sgworld.world.rows import Reader, held_by_reading
from sgworld.world.specification import Caption, Scene
from sgworld.world.sprites import GRID

SHIFT = 1 / 3
"""Of the scheduler's times: what the noise says can be heard at t = 1 alone, so the first step goes half of the way."""
TIMES = tuple(SHIFT * t / (1 + (SHIFT - 1) * t) for t in (1.0, 0.75, 0.5, 0.25, 0.0))
"""t before each of four Euler steps, and 0."""
SURE, SPARE = 0.6, 2
"""Cells to which places are told in what is drawn from, and how many times as many noises are read as are needed."""
MARKED = 4.0
"""How much an error counts where a mark is: it tells the class, and has few pixels."""
Velocity = Callable[[Tensor, Tensor, Encoded], Tensor]
"""Velocities `[B, 64, 16]` of states `[B, 64, 16]`, times `[B]` and texts."""


@dataclass(frozen=True)
class Mixture:
    """Shares of a batch: led by one, two and three own steps, and between noise and scene; the rest is at t = 1.

    `independent`: of those between, the share whose noise means nothing, as for an image that is noised.
    """

    led: tuple[float, float, float] = (0.0, 0.0, 0.0)
    between: float = 0.2
    independent: float = 0.4


STARTING, LEADING = Mixture(), Mixture((0.2, 0.1, 0.05), between=0.15)
"""To begin with, most is at t = 1, where sampling starts; then a third is as sampling goes on from there."""


def velocity_of(model: FluxTransformer2DModel) -> Velocity:
    """The model's own forward for 64 image tokens, matrix products in the precision that is faster here."""
    ids = FluxPipeline._prepare_latent_image_ids(1, 8, 8, torch.device("cpu"), torch.float32)

    def velocity(states: Tensor, times: Tensor, text: Encoded) -> Tensor:
        with quick_products():
            return model(
                hidden_states=states,
                encoder_hidden_states=text.states,
                pooled_projections=text.pooled,
                timestep=times,
                img_ids=ids,
                txt_ids=torch.zeros(text.states.shape[1], 3),
            ).sample.float()

    return velocity


@torch.no_grad()
def latents_of(vae: AutoencoderKL, pixels: Any) -> Tensor:
    """Shifted, scaled and packed latents `[B, 64, 16]` of images `[B, 64, 64, 3]`."""
    means = torch.from_numpy(encode(vae, pixels))
    latents = (means - vae.config.shift_factor) * vae.config.scaling_factor
    return FluxPipeline._pack_latents(latents, *latents.shape).float()


def token_weights(scene: Scene) -> Tensor:
    """What an error of each token `[64]` of a scene weighs: `MARKED` times as much where a mark is, 1 in the mean."""
    weights = torch.ones(GRID // 2, GRID // 2)
    for mark in scene.marks:
        weights[mark.y // 2 : -(-(mark.y + mark.h) // 2), mark.x // 2 : -(-(mark.x + mark.w) // 2)] = MARKED
    return (weights / weights.mean()).flatten()


@dataclass(frozen=True)
class Batch:
    """What a step needs: noise and latents of the scenes it means `[B, 64, 16]`, the texts encoded, and what errors of tokens weigh
    `[B, 64]`, 1 in the mean of a scene.
    """

    noise: Tensor
    scenes: Tensor
    text: Encoded
    weights: Tensor


@dataclass(frozen=True)
class Batches(Dataset[Batch]):
    """Batches, each a function of its index and of the seed of the sounds.

    Of the sounds of a step it has the first `size` that are told to `SURE` of a cell, and the next ones where those are fewer: what
    is told farther from its scene teaches to draw beside what is told.
    """

    sounds: Sounds
    reader: Reader
    vae: AutoencoderKL
    size: int

    def __getitem__(self, index: int) -> Batch:
        captions, noise, text, names = self.sounds[index]
        scenes, far = self.reader.scenes(captions, noise, text, names)
        chosen = far.clamp(min=SURE).argsort(stable=True)[: self.size]
        shown = [scenes[index] for index in chosen.tolist()]
        latents = latents_of(self.vae, np.stack([render(each) for each in shown]))
        return Batch(noise[chosen], latents, text.part(chosen), torch.stack([token_weights(each) for each in shown]))


def time_weights(times: Tensor, led: Tensor) -> Tensor:
    """Weights `[B]` of the velocity's error: t² for states that were `led`, which is the error of the image; else 1 above 1/4, and
    (4t)² below, where the velocity asks for noise that cannot be told from what the VAE left.
    """
    return torch.where(led, times, (times * 4).clamp(max=1.0)).square()


@dataclass(frozen=True)
class States:
    """States `[B, 64, 16]` at times `[B]` from which the scenes `[B, 64, 16]` are to be reached, and which were led there."""

    states: Tensor
    times: Tensor
    scenes: Tensor
    led: Tensor


def draw_states(
    velocity: Velocity, text: Encoded, noise: Tensor, scenes: Tensor, mixture: Mixture, generator: torch.Generator
) -> States:
    """Where the batch stands: first rows between noise and scene, then those at t = 1, last those that were led."""
    batch = len(noise)
    between, counts = round(batch * mixture.between), [round(batch * share) for share in mixture.led]
    states, times = noise.clone(), torch.ones(batch)
    times[:between] = torch.rand(between, generator=generator).clamp(min=0.01)
    apart = round(between * mixture.independent)
    states[:apart] = torch.randn(states[:apart].shape, generator=generator)
    at = times[:between, None, None]
    states[:between] = (1 - at) * scenes[:between] + at * states[:between]
    led = torch.zeros(batch, dtype=torch.bool)
    for count, before, after in zip(counts, TIMES, TIMES[1:], strict=False):
        if not count:
            break
        rows = slice(batch - count, batch)
        with torch.no_grad():
            states[rows] -= velocity(states[rows], times[rows], text.part(rows)) * (before - after)
        times[rows] = after
        led[rows] = True
    return States(states, times, scenes, led)


def losses_of(velocity: Velocity, batch: Batch, mixture: Mixture, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
    """The flow's error, weighted by token and by time; logged are the shares of the scenes' variance over the batch that are not
    explained: at t = 1, and where the model's own steps led, by how many of them.
    """
    stand = draw_states(velocity, batch.text, batch.noise, batch.scenes, mixture, generator)
    found = velocity(stand.states, stand.times, batch.text)
    by_token = (found - (stand.states - stand.scenes) / stand.times[:, None, None]).square().mean(2)
    errors = (by_token * batch.weights).mean(1)
    wrong = by_token.detach().mean(1) * stand.times.square() / batch.scenes.var(0).mean()
    logged = {"unexplained": wrong[stand.times == 1].mean()}
    for steps, share in enumerate(mixture.led, 1):
        if share:
            logged[f"led_{steps}"] = wrong[stand.led & (stand.times == TIMES[steps])].mean()
    return (time_weights(stand.times, stand.led) * errors).mean(), logged


@dataclass(frozen=True)
class Phase:
    """A part of the training: its steps, the peak of its rate, which falls to zero over the last `decay` steps, and its batches.

    `blocks`: of which double-stream blocks of the phase before its own are made (see `deepen`). `behind`: the block
    behind which each step of `examples.lessons` stands. `average`: decay of the averaged weights. `behind_alone`: the blocks up to
    where places are told are held whole, which spares their backward pass; those that follow are all that draws.
    """

    steps: int
    mixture: Mixture
    blocks: tuple[int, ...]
    behind: Mapping[str, int]
    rate: float = 5e-4
    decay: int = 0
    batch: int = 48
    average: float = 0.999
    behind_alone: bool = False


def fit(
    model: FluxTransformer2DModel, reader: Reader, pool: Sequence[Caption], encoders: FluxPipeline, vae: AutoencoderKL,
    folder: Path, phase: Phase, *, seed: int, compiled: bool = True, processes: Processes = ALONE,
) -> FluxTransformer2DModel:  # fmt: skip
    """Train for a phase from the last checkpoint in `folder`; returns the averaged model. `model` has the phase's blocks.

    A noise means what the frozen `reader` reads; what of the model reads is held.

    Captions, noises and scenes are drawn anew at every step; `processes` share its batch.
    """
    model.set_attention_backend("_native_math")
    if compiled:
        compile_blocks(model)
    for parameter in held_by_reading(model, phase.behind):
        parameter.requires_grad_(False)
    if phase.behind_alone:
        model.transformer_blocks[: phase.behind["place"] + 1].requires_grad_(False)
    size = phase.batch // processes.count
    velocity, batches = velocity_of(model), Batches(Sounds(pool, encoders, SPARE * size, seed), reader, vae, size)
    ahead: Ahead[Batch] | None = None

    def losses(step: int, _: int) -> tuple[Tensor, dict[str, Tensor]]:
        nonlocal ahead
        ahead = ahead or Ahead(batches, step, phase.steps, processes)
        return losses_of(velocity, next(ahead), phase.mixture, step_generator(seed + 1000 + processes.index, step))

    train_model(
        model, losses, folder, steps=phase.steps, samples=size, rate=phase.rate, warmup=100, decay=phase.decay,
        average=phase.average, muon="transformer_blocks", muon_rate=2 * phase.rate, processes=processes,
    )  # fmt: skip
    return model.requires_grad_(True)
