"""Training of the world's FLUX: a rectified flow from the noise that means a scene to that scene.

Four things make it learn in hours on two cores. A noise means one scene (`meaning`). The first blocks are taught to write what the
noise says into the first features of the rows of names: who stands left depends on the noise *and* on who is said first, and such
products are learned late from a mean that is a faint feature of a row. Later blocks are taught to write where each object stands
into the last features, and in half of the samples those after them are handed the true places there (teacher forcing), so that
drawing is learned before reading is; the trained model is handed nothing. And a part of each batch is led by the model's own Euler
steps, as in sampling.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, FluxPipeline, FluxTransformer2DModel
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sgworld.flux import encode_texts
from sgworld.training import step_generator, train_model
from sgworld.vae import encode
from sgworld.world.examples import PLACE, Places, draw_examples, places
from sgworld.world.meaning import CHANNELS, levels
from sgworld.world.specification import Caption

STEPS = 4
FORCED = 0.5
"""Share of the samples that are handed the true places there, where any are."""


@dataclass(frozen=True)
class Mixture:
    """Shares of a batch: led by one, two and three own steps, and between noise and scene; the rest is at t = 1.

    `independent`: of those between, the share whose noise means nothing, as for an image that is noised.
    """

    led: tuple[float, float, float] = (0.0, 0.0, 0.0)
    between: float = 0.2
    independent: float = 0.4


TAUGHT = 3.0
"""Weight of the places' error."""
READING, LEADING = Mixture(), Mixture((0.25, 0.1875, 0.125), between=0.25)
"""To begin with, most is at t = 1, where sampling starts; then half is as sampling goes on from there."""


@dataclass(frozen=True)
class Encoded:
    """T5's states `[B, T, 96]` and CLIP's vectors `[B, 64]` of a batch of texts."""

    states: Tensor
    pooled: Tensor

    def part(self, rows: slice) -> "Encoded":
        """Of some of the samples."""
        return Encoded(self.states[rows], self.pooled[rows])


class PlacedFlux:
    """A FLUX whose text rows are looked at, and changed, behind one block."""

    def __init__(self, model: FluxTransformer2DModel, tokens: int, heard_by: int, read_by: int) -> None:
        self.model, self._heard_by, self._read_by = model, heard_by, read_by
        ids = FluxPipeline._prepare_latent_image_ids(1, 8, 8, torch.device("cpu"), torch.float32)
        self._rotary = model.pos_embed(torch.cat((torch.zeros(tokens, 3), ids)))

    def __call__(self, states: Tensor, times: Tensor, text: Encoded, forced: Places | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Velocities `[B, 64, 16]`; what stands in all text rows' features of the noise `[B, T, 16]` and of places `[B, T, 18]`.

        `forced`: what is put there instead, for the samples and rows that it names. The model's own forward without it, matrix
        products in bfloat16.
        """
        with torch.autocast("cpu", torch.bfloat16):
            found = self._forward(states, times, text, forced)
        velocity, heard, said = (each.float() for each in found)
        return velocity, heard, said

    def _forward(self, states: Tensor, times: Tensor, text: Encoded, forced: Places | None) -> tuple[Tensor, Tensor, Tensor]:
        model = self.model
        image = model.x_embedder(states)
        conditioning = model.time_text_embed(times * 1000, text.pooled)
        words = model.context_embedder(text.states)
        heard = said = states.new_zeros(0)
        for index, block in enumerate(model.transformer_blocks):
            words, image = block(hidden_states=image, encoder_hidden_states=words, temb=conditioning, image_rotary_emb=self._rotary)
            if index == self._heard_by:
                heard = words[..., :CHANNELS]
            if index == self._read_by:
                said = words[..., -PLACE:]
                if forced is not None:
                    words = words.clone()
                    words[forced.samples, forced.rows, -PLACE:] = forced.features.to(words)
        for block in model.single_transformer_blocks:
            words, image = block(hidden_states=image, encoder_hidden_states=words, temb=conditioning, image_rotary_emb=self._rotary)
        return model.proj_out(model.norm_out(image, conditioning)), heard, said


@torch.no_grad()
def latents_of(vae: AutoencoderKL, pixels: Any) -> Tensor:
    """Shifted, scaled and packed latents `[B, 64, 16]` of images `[B, 64, 64, 3]`."""
    means = torch.from_numpy(encode(vae, pixels))
    latents = (means - vae.config.shift_factor) * vae.config.scaling_factor
    return FluxPipeline._pack_latents(latents, *latents.shape).float()


@dataclass(frozen=True)
class Batch:
    """What a step needs: noise and latents of the scenes it means `[B, 64, 16]`, the texts encoded, and where objects stand."""

    noise: Tensor
    scenes: Tensor
    text: Encoded
    known: Places


@dataclass(frozen=True)
class Batches(Dataset[Batch]):
    """The batch of each step, a function of (seed, step); made by a process of its own beside the training."""

    pool: Sequence[Caption]
    encoders: FluxPipeline
    vae: AutoencoderKL
    size: int
    seed: int

    def __getitem__(self, step: int) -> Batch:
        rng, generator = np.random.default_rng((self.seed, step)), step_generator(self.seed, step)
        examples = draw_examples(self.pool, rng, generator, self.size)
        text = Encoded(*encode_texts(self.encoders, examples.texts))
        known = places(self.encoders.tokenizer_2, examples.texts, examples.scenes)
        return Batch(examples.noise, latents_of(self.vae, examples.pixels), text, known)


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
    flux: PlacedFlux, text: Encoded, noise: Tensor, scenes: Tensor, mixture: Mixture, generator: torch.Generator
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
            velocity, _, _ = flux(states[rows], times[rows], text.part(rows))
        states[rows] -= velocity / STEPS
        times[rows] = t - 1 / STEPS
        led[rows] = True
    return States(states, times, scenes, led)


def losses_of(flux: PlacedFlux, batch: Batch, phase: "Phase", generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
    """The flow's weighted error plus that of the places, and what is logged.

    Logged: both, and the share of the scenes' variance over the batch that is not explained at t = 1 where no places are handed.
    """
    text, scenes, known = batch.text, batch.scenes, batch.known
    stand = draw_states(flux, text, batch.noise, scenes, phase.mixture, generator)
    forced = torch.rand(len(scenes), generator=generator) < phase.forced
    chosen = forced[known.samples]
    handed = Places(known.samples[chosen], known.rows[chosen], known.features[chosen]) if phase.forced else None
    velocity, heard, said = flux(stand.states, stand.times, text, handed)
    errors = (velocity - (stand.states - stand.scenes) / stand.times[:, None, None]).square().mean((1, 2))
    flow = (time_weights(stand.times, stand.led) * errors).mean()
    unexplained = errors[(stand.times == 1) & ~forced].mean() / scenes.var(0).mean()
    logged = {"flow": flow, "unexplained": unexplained}
    if not phase.forced:
        return flow, logged
    read = (stand.times >= 0.5)[known.samples]
    reading = (said[known.samples, known.rows] - known.features).square()[read].mean()
    means = torch.as_tensor(4 * levels(batch.noise) - 2, dtype=torch.float32)
    hearing = (heard[known.samples, known.rows] - means[known.samples]).square()[(stand.times == 1)[known.samples]].mean()
    return flow + TAUGHT * reading + hearing, {**logged, "heard": hearing, "places": reading}


@dataclass(frozen=True)
class Phase:
    """A part of the training: its steps, the peak of its rate, which falls to zero over the last `decay` steps, and its batches.

    `blocks`: of which double-stream blocks of the model before this phase its own are made (see `deepen`). `heard_by`, `read_by`:
    the blocks behind which what the noise says, and the places, stand in the rows of names. `forced`: share of samples that are
    handed the true places; at 0 neither is taught. `average`: decay of the averaged weights.
    """

    steps: int
    mixture: Mixture
    blocks: tuple[int, ...]
    heard_by: int
    read_by: int
    rate: float = 1e-3
    decay: int = 0
    batch: int = 48
    forced: float = FORCED
    average: float = 0.999


def fit(
    model: FluxTransformer2DModel, pool: Sequence[Caption], encoders: FluxPipeline, vae: AutoencoderKL, folder: Path,
    phase: Phase, *, seed: int, compiled: bool = True,
) -> FluxTransformer2DModel:  # fmt: skip
    """Train for a phase from the last checkpoint in `folder`; returns the averaged model. `model` has the phase's blocks.

    Captions, noises and scenes are drawn anew at every step, by a process of their own.
    """
    model.set_attention_backend("_native_math")
    if compiled:
        torch._dynamo.config.automatic_dynamic_shapes = False
        model.compile_repeated_blocks(fullgraph=True)
    flux = PlacedFlux(model, encoders.tokenizer_2.model_max_length, phase.heard_by, phase.read_by)
    batches = Batches(pool, encoders, vae, phase.batch, seed)
    ahead: Iterator[Batch] = iter(())

    def losses(step: int, _: int) -> tuple[Tensor, dict[str, Tensor]]:
        nonlocal ahead
        batch = next(ahead, None)
        if batch is None:
            left = range(step, phase.steps)
            ahead = iter(DataLoader(batches, None, sampler=left, num_workers=1, multiprocessing_context="spawn"))
            batch = next(ahead)
        return losses_of(flux, batch, phase, step_generator(seed + 1000, step))

    return train_model(
        model, losses, folder, steps=phase.steps, samples=phase.batch, rate=phase.rate, warmup=100, decay=phase.decay,
        average=phase.average, muon="transformer_blocks", muon_rate=2 * phase.rate,
    )  # fmt: skip
