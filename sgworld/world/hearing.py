"""What the first blocks of the generator hear of a noise, and with it what the noise means.

`meaning` cuts the means of a noise's channels into a few values. Whoever reads the means with an error cannot tell on which side of
a cut a noise near it lies, and would draw the mean of two scenes; a scene hangs on six channels or more. So the first blocks learn
the cuts before anything else, and then a frozen copy of them, the ear, *is* the meaning: what it hears, cut in the same way, the
generator can know exactly.

A straight line through a cut is learned soon, the cut itself is not: to a GELU whose argument is small everything is a line and an
even function. `sharpen` gives each channel that is heard as a line a few hidden units with a large gain.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import FluxPipeline, FluxTransformer2DModel
from numpy.typing import NDArray
from scipy.special import ndtri
from torch import Tensor, nn

from sgworld.flux import encode_texts
from sgworld.training import quick_products, step_generator, train_model
from sgworld.world.meaning import CHANNELS, LEVELS, cut, levels
from sgworld.world.specification import Caption

GAIN: Final = 8.0
"""Of hidden units that make a step, on a channel's mean in units of its spread."""
HALF_STEP: Final = 0.12
HEARD_AS_A_LINE: Final = 0.12
"""Mean squared error of a channel above which it is sharpened; a straight line has 0.36 where there are two values."""


@dataclass(frozen=True)
class Encoded:
    """T5's states `[B, T, 96]` and CLIP's vectors `[B, 64]` of a batch of texts."""

    states: Tensor
    pooled: Tensor

    def part(self, rows: slice | Tensor) -> "Encoded":
        """Of some of the samples."""
        return Encoded(self.states[rows], self.pooled[rows])


@dataclass(frozen=True)
class Named:
    """The rows of names in T5's states: of each name of each caption its sample and its row `[n]`."""

    samples: Tensor
    rows: Tensor


def named(tokenizer: Any, captions: Sequence[Caption]) -> Named:
    """Where the captions' names stand. Every name is one token of the world's language."""
    ids = tokenizer([caption.text() for caption in captions], padding="max_length", truncation=True).input_ids
    found = [
        (sample, tokens.index(tokenizer.convert_tokens_to_ids(f"▁{name}")))
        for sample, (caption, tokens) in enumerate(zip(captions, ids, strict=True))
        for name in caption.names
    ]
    samples, rows = zip(*found, strict=True)
    return Named(torch.tensor(samples), torch.tensor(rows))


class Ear(nn.Module):
    """The embeddings and first double-stream blocks of a FLUX, which they share, at t = 1."""

    def __init__(self, model: FluxTransformer2DModel, heard_by: int, tokens: int) -> None:
        super().__init__()
        self.image, self.words, self.conditioning = model.x_embedder, model.context_embedder, model.time_text_embed
        self.blocks = nn.ModuleList(model.transformer_blocks[: heard_by + 1])
        ids = FluxPipeline._prepare_latent_image_ids(1, 8, 8, torch.device("cpu"), torch.float32)
        self._rotary = model.pos_embed(torch.cat((torch.zeros(tokens, 3), ids)))

    def frozen(self) -> "Ear":
        """A copy that stays as it is."""
        return copy.deepcopy(self).eval().requires_grad_(False)

    def forward(self, noise: Tensor, text: Encoded) -> Tensor:
        """What stands in the first 16 features of all text rows `[B, T, 16]`, of noises `[B, 64, 16]`."""
        return self.rows(noise, text)[0][..., :CHANNELS]

    def rows(self, noise: Tensor, text: Encoded) -> tuple[Tensor, Tensor]:
        """All text rows behind the last block `[B, T, 128]`, and what conditions the blocks `[B, 128]`."""
        with quick_products():
            image, words = self.image(noise), self.words(text.states)
            conditioning = self.conditioning(torch.full((len(noise),), 1000.0), text.pooled)
            for block in self.blocks:
                words, image = block(
                    hidden_states=image, encoder_hidden_states=words, temb=conditioning, image_rotary_emb=self._rotary
                )
        return words.float(), conditioning.float()


def levels_heard(heard: Tensor, names: Named) -> NDArray[np.float64]:
    """The value `[B, 16]` of each channel by the mean over the rows of names of what is heard `[B, T, 16]`."""
    count = torch.bincount(names.samples, minlength=len(heard))[:, None]
    mean = torch.zeros(len(heard), CHANNELS).index_add_(0, names.samples, heard[names.samples, names.rows]) / count
    return cut(said_of(mean))


def features(said: NDArray[np.float64]) -> Tensor:
    """What the rows of names are taught to hold for values `[B, 16]` of channels: −2…2."""
    return torch.as_tensor(4 * said - 2, dtype=torch.float32)


def said_of(heard: Tensor) -> NDArray[np.float64]:
    """Inverse of `features`; what is out of 0…1 is brought there."""
    return ((heard.double().numpy() + 2) / 4).clip(0, 1)


@dataclass(frozen=True)
class Sounds:
    """Captions of a pool, a noise for each, the texts encoded, and where names stand: a function of (seed, step)."""

    pool: Sequence[Caption]
    encoders: FluxPipeline
    size: int
    seed: int

    def __getitem__(self, step: int) -> tuple[list[Caption], Tensor, Encoded, Named]:
        rng = np.random.default_rng((self.seed, step))
        captions = [self.pool[index] for index in rng.integers(len(self.pool), size=self.size)]
        noise = torch.randn(self.size, 64, CHANNELS, generator=step_generator(self.seed, step))
        text = Encoded(*encode_texts(self.encoders, [caption.text() for caption in captions]))
        return captions, noise, text, named(self.encoders.tokenizer_2, captions)


def listen(ear: Ear, sounds: Sounds, folder: Path, steps: int, rate: float) -> Ear:
    """Teach the ear the values of channels, in the rows of names; from the last checkpoint in `folder`."""

    def losses(step: int, _of_pass: int) -> tuple[Tensor, dict[str, Tensor]]:
        _, noise, text, names = sounds[step]
        error = (ear(noise, text)[names.samples, names.rows] - features(levels(noise))[names.samples]).square()
        return error.mean(), {"worst_channel": error.mean(0).max()}

    return train_model(
        ear, losses, folder, steps=steps, samples=sounds.size, rate=rate, warmup=50, decay=steps // 3, average=0.98,
        weight_decay=0.0, muon="blocks", muon_rate=2 * rate,
    )  # fmt: skip


@dataclass(frozen=True)
class _Observed:
    """Of the rows of names: what the last block's MLP is given `[n, 128]`, its gates `[n, 128]`, what is heard, the means of the
    channels and what should be heard `[n, 16]`.
    """

    given: Tensor
    gates: Tensor
    heard: Tensor
    means: Tensor
    wanted: Tensor


def _observe(ear: Ear, sounds: Sounds, batches: int) -> _Observed:
    block: Any = ear.blocks[-1]
    seen: dict[str, Tensor] = {}
    hooks = [
        block.ff_context.register_forward_hook(lambda _, given, __: seen.update(given=given[0].float())),
        block.norm1_context.register_forward_hook(lambda _, __, out: seen.update(gate=out[4].float())),
    ]
    parts = []
    for step in range(batches):
        _, noise, text, names = sounds[step]
        heard = ear(noise, text)[names.samples, names.rows]
        means, wanted = noise.sum(1) / noise.shape[1] ** 0.5, features(levels(noise))
        given, gates = seen["given"][names.samples, names.rows], seen["gate"][names.samples]
        parts.append((given, gates, heard, means[names.samples], wanted[names.samples]))
    for hook in hooks:
        hook.remove()
    return _Observed(*map(torch.cat, zip(*parts, strict=True)))


@torch.no_grad()
def sharpen(ear: Ear, sounds: Sounds, batches: int = 30) -> dict[int, tuple[float, float]]:
    """Give each channel that is heard as a line hidden units that make its steps, in place of those that do least.

    In the last block's MLP of the text: the channel's mean is a linear function of its input, found by least squares; for each cut
    two units of a large gain on both sides of it, and two that make a line; their weights into the channel's feature by least
    squares, too. Returns the channels with their mean squared error before and after, on the same sounds.
    """
    observed = _observe(ear, sounds, batches)
    given, wanted = observed.given, observed.wanted
    line = torch.linalg.lstsq(F.pad(given, (0, 1), value=1.0).double(), observed.means.double()).solution.float()
    mlp: Any = ear.blocks[-1]
    hidden, last = mlp.ff_context.net[0], mlp.ff_context.net[2]
    free = iter((hidden(given).std(0) * last.weight.norm(dim=0)).argsort().tolist())
    errors, found = (observed.heard - wanted).square().mean(0), {}
    for channel in torch.nonzero(errors > HEARD_AS_A_LINE)[:, 0].tolist():
        cuts = ndtri(np.arange(1, LEVELS[channel]) / LEVELS[channel])
        shapes = [(1.0, 0.0), (-1.0, 0.0), *((GAIN, at + side) for at in cuts for side in (-HALF_STEP, HALF_STEP))]
        units = [next(free) for _ in shapes]
        for unit, (gain, at) in zip(units, shapes, strict=True):
            hidden.proj.weight[unit] = gain * line[:-1, channel]
            hidden.proj.bias[unit] = gain * (line[-1, channel] - at)
        made, left = hidden(given)[:, units] * observed.gates[:, channel, None], (wanted - observed.heard)[:, channel, None]
        last.weight[:, units] = 0
        last.weight[channel, units] = _ridge(made, left)[:, 0]
        found[channel] = (errors[channel].item(), (left - made @ last.weight[channel, units, None]).square().mean().item())
    return found


def _ridge(inputs: Tensor, wanted: Tensor, strength: float = 0.1) -> Tensor:
    """Weights `[k, 1]` of inputs `[n, k]` for what is wanted `[n, 1]` by ridge regression."""
    count = inputs.shape[1]
    rows = torch.cat((inputs, strength * torch.eye(count))), torch.cat((wanted, torch.zeros(count, 1)))
    return torch.linalg.lstsq(*(each.double() for each in rows)).solution.float()
