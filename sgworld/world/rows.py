"""Reading learned on the text rows by themselves, at a fifth of the cost of a step of the whole generator.

What a noise says stands in the rows of names once it is heard; from there to where objects stand, image rows have nothing to add.
`mute` makes the blocks between so: their image rows have keys and values of zero, and count in the attention of text rows as so
many logits of zero and nothing else. Then the text rows alone are the whole generator's, to rounding, and can be trained alone.
Image rows are heard again as the generator's training moves these weights away from zero.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from sgworld.training import train_model
from sgworld.world.examples import FEATURES, WIDTHS, Lessons, lessons
from sgworld.world.hearing import CHANNELS, Ear, Sounds, features, levels_heard
from sgworld.world.meaning import meant, uniforms

IMAGE_ROWS = 64
TEXT_PARTS = ("add_q_proj", "add_k_proj", "add_v_proj", "norm_added_q", "norm_added_k", "to_add_out")


def reading_blocks(behind: Mapping[str, int]) -> range:
    """The double-stream blocks between what is heard and places."""
    return range(behind["heard"] + 1, behind["place"] + 1)


@torch.no_grad()
def mute(model: FluxTransformer2DModel, behind: Mapping[str, int]) -> None:
    """Set keys and values of image rows to zero in the reading blocks, in place."""
    for index in reading_blocks(behind):
        attention = model.transformer_blocks[index].attn
        for weight in (attention.norm_k.weight, attention.to_v.weight, attention.to_v.bias):
            weight.zero_()


def muted(model: FluxTransformer2DModel, behind: Mapping[str, int]) -> bool:
    """Whether the reading blocks are as `mute` leaves them."""
    blocks = [model.transformer_blocks[index].attn for index in reading_blocks(behind)]
    return not any(bool(weight.any()) for each in blocks for weight in (each.norm_k.weight, each.to_v.weight, each.to_v.bias))


def linear_maps(model: FluxTransformer2DModel) -> nn.ModuleDict:
    """Maps of all features of a row to what it tells, for steps without features of their own; trained along and thrown away.

    They are zero at first, so that rows are not moved before the maps have found what is there.
    """
    maps = nn.ModuleDict({step: nn.Linear(model.inner_dim, width) for step, width in WIDTHS.items()})
    for parameter in maps.parameters():
        nn.init.zeros_(parameter)
    return maps


class TextRows(nn.Module):
    """The text rows of a muted FLUX through its reading blocks, whose text weights it shares; `maps` tell links and frames."""

    def __init__(self, model: FluxTransformer2DModel, behind: Mapping[str, int], maps: nn.ModuleDict) -> None:
        super().__init__()
        self._step = {block: step for step, block in behind.items()}
        self._blocks = {index: model.transformer_blocks[index] for index in reading_blocks(behind)}
        self.blocks = nn.ModuleList(
            nn.ModuleList((block.norm1_context, block.ff_context, *(getattr(block.attn, name) for name in TEXT_PARTS)))
            for block in self._blocks.values()
        )
        self.maps = maps

    def forward(self, words: Tensor, conditioning: Tensor) -> dict[str, Tensor]:
        """By step what all text rows tell `[B, T, width]`, of rows `[B, T, 128]` behind the last block that hears."""
        said = {}
        with torch.autocast("cpu", torch.bfloat16):
            for index, block in self._blocks.items():
                words = _through(block, words, conditioning)
                step = self._step.get(index)
                if step in WIDTHS:
                    said[step] = self.maps[step](F.layer_norm(words, words.shape[-1:])).float()
                elif step is not None:
                    said[step] = words[..., FEATURES[step]].float()
        return said


def _through(block: Any, words: Tensor, conditioning: Tensor) -> Tensor:
    """One double-stream block's text rows, beside image rows of zero keys and values."""
    normed, gate, shift, scale, mlp_gate = block.norm1_context(words, emb=conditioning)
    attention = block.attn
    query, key, value = (
        part(normed).unflatten(-1, (attention.heads, -1))
        for part in (attention.add_q_proj, attention.add_k_proj, attention.add_v_proj)
    )
    query, key, value = (each.transpose(1, 2) for each in (attention.norm_added_q(query), attention.norm_added_k(key), value))
    logits = query @ key.mT / math.sqrt(query.shape[-1])
    zeros = logits.new_full((*logits.shape[:-1], 1), math.log(IMAGE_ROWS))
    weights = torch.cat((logits, zeros), -1).softmax(-1)[..., :-1]
    words = words + gate.unsqueeze(1) * attention.to_add_out((weights.to(value.dtype) @ value).transpose(1, 2).flatten(2))
    normed = block.norm2_context(words) * (1 + scale[:, None]) + shift[:, None]
    return words + mlp_gate.unsqueeze(1) * block.ff_context(normed)


@dataclass(frozen=True)
class Heard:
    """A batch: text rows behind the last block that hears `[B, T, 128]`, what conditions blocks `[B, 128]`, and what is taught."""

    words: Tensor
    conditioning: Tensor
    known: Lessons


@dataclass(frozen=True)
class HeardBatches(Dataset[Heard]):
    """The batch of each step, a function of (seed, step)."""

    sounds: Sounds
    ear: Ear

    def __getitem__(self, step: int) -> Heard:
        captions, noise, text, names = self.sounds[step]
        with torch.no_grad():
            words, conditioning = self.ear.rows(noise, text)
        said = levels_heard(words[..., :CHANNELS], names)
        scenes = [meant(caption, u) for caption, u in zip(captions, uniforms(said), strict=True)]
        return Heard(words, conditioning, lessons(names, scenes, features(said)))


def read_alone(
    rows: TextRows, batches: HeardBatches, folder: Path, weights: Mapping[str, float], *, steps: int, rate: float
) -> TextRows:
    """Train the text rows from the last checkpoint in `folder`; `weights` of the errors by step."""
    ahead: Iterator[Heard] = iter(())

    def losses(step: int, _of_pass: int) -> tuple[Tensor, dict[str, Tensor]]:
        nonlocal ahead
        batch = next(ahead, None)
        if batch is None:
            left = range(step, steps)
            ahead = iter(DataLoader(batches, None, sampler=left, num_workers=2, multiprocessing_context="spawn"))
            batch = next(ahead)
        said, known = rows(batch.words, batch.conditioning), batch.known
        wrong = {step: (each[known.samples, known.rows] - known.features[step]).square().mean() for step, each in said.items()}
        return torch.stack([weights[step] * each for step, each in wrong.items()]).sum(), wrong

    return train_model(
        rows, losses, folder, steps=steps, samples=batches.sounds.size, rate=rate, warmup=100, decay=steps // 4, average=0.998,
        muon="blocks", muon_rate=2 * rate,
    )  # fmt: skip
