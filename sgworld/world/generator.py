"""Training of the world's FLUX: a rectified flow from the noise that means a scene to that scene.

Four things make it learn in hours on two cores. A noise means one scene, as far as the first blocks can tell one noise from another
(`hearing`). What lies between that and where an object stands is taught step by step, behind one block after another, to the
rows of names (`examples.lessons`). Places stand in features of their own, and in half of the samples the blocks after them are
handed the true ones (teacher forcing), so that drawing is learned before reading is; the trained model is handed nothing. And a
part of each batch is led by the model's own Euler steps, as in sampling.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, FluxPipeline, FluxTransformer2DModel
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from sgworld.training import step_generator, train_model
from sgworld.vae import encode
from sgworld.world.examples import FEATURES, WIDTHS, Lessons, lessons
from sgworld.world.hearing import Ear, Encoded, Sounds, features
from sgworld.world.meaning import meant, uniforms
from sgworld.world.raster import render
from sgworld.world.rows import linear_maps
from sgworld.world.specification import Caption

STEPS = 4
FORCED = 0.5
"""Share of the samples that are handed the true places, where any are taught."""
TAUGHT: Final = {"heard": 1.0, "link": 2.0, "frame": 3.0, "place": 3.0}
"""Weights of the errors of what is taught."""


@dataclass(frozen=True)
class Mixture:
    """Shares of a batch: led by one, two and three own steps, and between noise and scene; the rest is at t = 1.

    `independent`: of those between, the share whose noise means nothing, as for an image that is noised.
    """

    led: tuple[float, float, float] = (0.0, 0.0, 0.0)
    between: float = 0.2
    independent: float = 0.4


READING, LEADING = Mixture(), Mixture((0.25, 0.1875, 0.125), between=0.25)
"""To begin with, most is at t = 1, where sampling starts; then half is as sampling goes on from there."""


class TaughtFlux(nn.Module):
    """A FLUX whose text rows are looked at, and changed, behind some blocks: `behind` has the block of each step."""

    def __init__(self, model: FluxTransformer2DModel, tokens: int, behind: Mapping[str, int]) -> None:
        super().__init__()
        self.model, self._step = model, {block: step for step, block in behind.items()}
        self.maps = linear_maps(model)
        ids = FluxPipeline._prepare_latent_image_ids(1, 8, 8, torch.device("cpu"), torch.float32)
        self._rotary = model.pos_embed(torch.cat((torch.zeros(tokens, 3), ids)))

    def forward(
        self, states: Tensor, times: Tensor, text: Encoded, known: Lessons | None = None, handed: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Velocities `[B, 64, 16]`, and by step what all text rows tell `[B, T, width]`.

        `handed`: the samples `[B]` whose rows of names are given the places that are `known`. The model's own forward without it,
        matrix products in bfloat16.
        """
        with torch.autocast("cpu", torch.bfloat16):
            velocity, said = self._forward(states, times, text, known, handed)
        return velocity.float(), {step: each.float() for step, each in said.items()}

    def _forward(
        self, states: Tensor, times: Tensor, text: Encoded, known: Lessons | None, handed: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        model, said = self.model, {}
        image = model.x_embedder(states)
        conditioning = model.time_text_embed(times * 1000, text.pooled)
        words = model.context_embedder(text.states)
        for index, block in enumerate(model.transformer_blocks):
            words, image = block(hidden_states=image, encoder_hidden_states=words, temb=conditioning, image_rotary_emb=self._rotary)
            if (step := self._step.get(index)) is None:
                continue
            if step in WIDTHS:
                said[step] = self.maps[step](F.layer_norm(words, words.shape[-1:]))
                continue
            said[step] = words[..., FEATURES[step]]
            if step == "place" and known is not None and handed is not None:
                chosen = handed[known.samples]
                words = words.clone()
                words[known.samples[chosen], known.rows[chosen], FEATURES[step]] = known.features[step][chosen].to(words)
        for block in model.single_transformer_blocks:
            words, image = block(hidden_states=image, encoder_hidden_states=words, temb=conditioning, image_rotary_emb=self._rotary)
        return model.proj_out(model.norm_out(image, conditioning)), said


@torch.no_grad()
def latents_of(vae: AutoencoderKL, pixels: Any) -> Tensor:
    """Shifted, scaled and packed latents `[B, 64, 16]` of images `[B, 64, 64, 3]`."""
    means = torch.from_numpy(encode(vae, pixels))
    latents = (means - vae.config.shift_factor) * vae.config.scaling_factor
    return FluxPipeline._pack_latents(latents, *latents.shape).float()


@dataclass(frozen=True)
class Batch:
    """What a step needs: noise and latents of the scenes it means `[B, 64, 16]`, the texts encoded, and what is taught."""

    noise: Tensor
    scenes: Tensor
    text: Encoded
    known: Lessons


@dataclass(frozen=True)
class Batches(Dataset[Batch]):
    """The batch of each step, a function of (seed, step); made by a process of its own beside the training."""

    sounds: Sounds
    ear: Ear
    vae: AutoencoderKL

    def __getitem__(self, step: int) -> Batch:
        captions, noise, text, names = self.sounds[step]
        said = self.ear.levels(noise, text, names)
        scenes = [meant(caption, u) for caption, u in zip(captions, uniforms(said), strict=True)]
        latents = latents_of(self.vae, np.stack([render(scene) for scene in scenes]))
        return Batch(noise, latents, text, lessons(names, scenes, features(said)))


def time_weights(times: Tensor, led: Tensor) -> Tensor:
    """Weights `[B]` of the velocity's error: t² for states that were `led`, which is the error of the image; else 1 above 1/4, and
    (4t)² below, where the velocity asks for noise that cannot be told from what the VAE left.
    """
    return torch.where(led, times, (times * STEPS).clamp(max=1.0)).square()


@dataclass(frozen=True)
class States:
    """States `[B, 64, 16]` at times `[B]` from which the scenes `[B, 64, 16]` are to be reached, and which were led there."""

    states: Tensor
    times: Tensor
    scenes: Tensor
    led: Tensor


def draw_states(
    flux: TaughtFlux, text: Encoded, noise: Tensor, scenes: Tensor, mixture: Mixture, generator: torch.Generator
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
    for step, count in enumerate(counts):
        if not count:
            break
        rows, t = slice(batch - count, batch), 1 - step / STEPS
        with torch.no_grad():
            velocity, _ = flux(states[rows], times[rows], text.part(rows))
        states[rows] -= velocity / STEPS
        times[rows] = t - 1 / STEPS
        led[rows] = True
    return States(states, times, scenes, led)


def losses_of(flux: TaughtFlux, batch: Batch, phase: "Phase", generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
    """The flow's weighted error plus those of what is taught, and what is logged.

    Logged: all of them, and the share of the scenes' variance over the batch that is not explained at t = 1 where no places are
    handed. What the noise says is taught at t = 1, the rest from the first half of the times.
    """
    text, scenes, known = batch.text, batch.scenes, batch.known
    stand = draw_states(flux, text, batch.noise, scenes, phase.mixture, generator)
    handed = torch.rand(len(scenes), generator=generator) < (FORCED if phase.taught else 0.0)
    velocity, said = flux(stand.states, stand.times, text, known, handed)
    errors = (velocity - (stand.states - stand.scenes) / stand.times[:, None, None]).square().mean((1, 2))
    flow = (time_weights(stand.times, stand.led) * errors).mean()
    logged = {"flow": flow, "unexplained": errors[(stand.times == 1) & ~handed].mean() / scenes.var(0).mean()}
    if not phase.taught:
        return flow, logged
    loss = flow
    for step, weight in TAUGHT.items():
        counted = (stand.times == 1 if step == "heard" else stand.times >= 0.5)[known.samples]
        wrong = (said[step][known.samples, known.rows] - known.features[step]).square()[counted].mean()
        loss, logged[step] = loss + weight * wrong, wrong
    return loss, logged


@dataclass(frozen=True)
class Phase:
    """A part of the training: its steps, the peak of its rate, which falls to zero over the last `decay` steps, and its batches.

    `blocks`: of which double-stream blocks of the model before this phase its own are made (see `deepen`). `behind`: the block
    behind which each step of `examples.lessons` stands. `taught`: whether they are taught and handed. `average`: decay of the
    averaged weights. `held`: whether the blocks that hear stay as the ear has them; the noise of a large rate blurs what they hear.
    """

    steps: int
    mixture: Mixture
    blocks: tuple[int, ...]
    behind: Mapping[str, int]
    rate: float = 5e-4
    decay: int = 0
    batch: int = 48
    taught: bool = True
    average: float = 0.999
    held: bool = True


def fit(
    model: FluxTransformer2DModel, ear: Ear, pool: Sequence[Caption], encoders: FluxPipeline, vae: AutoencoderKL, folder: Path,
    phase: Phase, *, seed: int, compiled: bool = True,
) -> FluxTransformer2DModel:  # fmt: skip
    """Train for a phase from the last checkpoint in `folder`; returns the averaged model. `model` has the phase's blocks.

    A noise means what the frozen `ear` hears.

    Captions, noises and scenes are drawn anew at every step, by a process of their own.
    """
    model.set_attention_backend("_native_math")
    if compiled:
        torch._dynamo.config.automatic_dynamic_shapes = False
        torch._dynamo.config.recompile_limit = 64  # batches of four sizes, with and without gradients, held blocks and others
        model.compile_repeated_blocks(fullgraph=True)
    tokens = encoders.tokenizer_2.model_max_length
    Ear(model, phase.behind["heard"], tokens).requires_grad_(not phase.held)
    flux = TaughtFlux(model, tokens, phase.behind)
    batches = Batches(Sounds(pool, encoders, phase.batch, seed), ear, vae)
    ahead: Iterator[Batch] = iter(())

    def losses(step: int, _: int) -> tuple[Tensor, dict[str, Tensor]]:
        nonlocal ahead
        batch = next(ahead, None)
        if batch is None:
            left = range(step, phase.steps)
            ahead = iter(DataLoader(batches, None, sampler=left, num_workers=1, multiprocessing_context="spawn"))
            batch = next(ahead)
        return losses_of(flux, batch, phase, step_generator(seed + 1000, step))

    train_model(
        flux, losses, folder, steps=phase.steps, samples=phase.batch, rate=phase.rate, warmup=100, decay=phase.decay,
        average=phase.average, muon="transformer_blocks", muon_rate=2 * phase.rate,
    )  # fmt: skip
    return model.requires_grad_(True)
