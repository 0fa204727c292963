"""Reading learned on the text rows by themselves, at a fifth of the cost of a step of the whole generator.

What a noise says stands in the rows of names once it is heard; from there to where objects stand, image rows have nothing to add.
`mute` makes the blocks between so: their image rows have keys and values of zero, and count in the attention of text rows as so
many logits of zero and nothing else. Then the text rows alone are the whole generator's, to rounding, and can be trained alone.
All of this is held while the generator learns to draw.
"""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import FluxTransformer2DModel
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset

from sgpipe.runs.processes import Processes
from sgworld.training import ALONE, Ahead, quick_products, train_model
from sgworld.world.examples import FEATURES, FREQUENCIES, WIDTHS, Lessons, cells, lessons, told_stands
from sgworld.world.hearing import CHANNELS, Ear, Encoded, Named, Sounds, levels_heard
from sgworld.world.meaning import meant, nearest, uniforms
from sgworld.world.specification import Caption, Scene

IMAGE_ROWS = 64
WEIGHTS: Final = {"link": 1.0, "frame": 1.5, "rough": 0.1, "place": 0.3}
"""Of the errors of what is taught."""
SHARP: Final = 0.2
"""Cells from which on an error of a place counts by its logarithm, so that captions that are told wrong do not drown what others
lack to the exact place.
"""
TEXT_PARTS = ("add_q_proj", "add_k_proj", "add_v_proj", "norm_added_q", "norm_added_k", "to_add_out")


def reading_blocks(behind: Mapping[str, int]) -> range:
    """The double-stream blocks between what is heard and places."""
    return range(behind["heard"] + 1, behind["place"] + 1)


@torch.no_grad()
def mute(model: FluxTransformer2DModel, behind: Mapping[str, int]) -> None:
    """Set keys and values of image rows to zero in the reading blocks, in place."""
    for index in reading_blocks(behind):
        for weight in _image_keys_and_values(model, index):
            weight.zero_()


def muted(model: FluxTransformer2DModel, behind: Mapping[str, int]) -> bool:
    """Whether the reading blocks are as `mute` leaves them."""
    return not any(bool(each.any()) for index in reading_blocks(behind) for each in _image_keys_and_values(model, index))


def held_by_reading(model: FluxTransformer2DModel, behind: Mapping[str, int]) -> Iterator[nn.Parameter]:
    """The parameters of a muted model on which the text rows depend up to where places are told.

    What the image rows do in the last block that hears with what they attend to is none of these.
    """
    last: Any = model.transformer_blocks[behind["heard"]]
    seen = nn.ModuleList((last.attn.to_q, last.attn.norm_q, last.attn.to_out, last.ff))
    free = {id(each) for each in seen.parameters()}
    yield from (each for each in Ear(model, behind["heard"], 1).parameters() if id(each) not in free)
    yield from TextRows(model, behind).parameters()
    for index in reading_blocks(behind):
        yield from _image_keys_and_values(model, index)


def _image_keys_and_values(model: FluxTransformer2DModel, index: int) -> tuple[nn.Parameter, ...]:
    attention: Any = model.transformer_blocks[index].attn
    return attention.norm_k.weight, attention.to_v.weight, attention.to_v.bias


def linear_maps(model: FluxTransformer2DModel) -> nn.ModuleDict:
    """Maps of all features of a row to what it tells, for steps without features of their own; trained along and thrown away.

    They are zero at first, so that rows are not moved before the maps have found what is there.
    """
    maps = nn.ModuleDict({step: nn.Linear(model.inner_dim, width) for step, width in WIDTHS.items()})
    for parameter in maps.parameters():
        nn.init.zeros_(parameter)
    return maps


class TextRows(nn.Module):
    """The text rows of a muted FLUX through its reading blocks, whose text weights it shares.

    `maps`, where given, tell links and frames.
    """

    def __init__(self, model: FluxTransformer2DModel, behind: Mapping[str, int], maps: nn.ModuleDict | None = None) -> None:
        super().__init__()
        self._step = {block: step for step, block in behind.items()}
        self._blocks = {index: model.transformer_blocks[index] for index in reading_blocks(behind)}
        self.blocks = nn.ModuleList(
            nn.ModuleList((block.norm1_context, block.ff_context, *(getattr(block.attn, name) for name in TEXT_PARTS)))
            for block in self._blocks.values()
        )
        self.maps = nn.ModuleDict() if maps is None else maps

    def forward(self, words: Tensor, conditioning: Tensor) -> dict[str, Tensor]:
        """By step what all text rows tell `[B, T, width]`, of rows `[B, T, 128]` behind the last block that hears."""
        said = {}
        with quick_products():
            for index, block in self._blocks.items():
                words = _through(block, words, conditioning)
                step = self._step.get(index)
                if step is None:
                    continue
                if step in self.maps:
                    said[step] = self.maps[step](F.layer_norm(words, words.shape[-1:])).float()
                elif step in FEATURES:
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


class Reader(nn.Module):
    """What a muted model reads in a noise: its ear and its text rows, which it shares. A frozen copy decides what noises mean."""

    def __init__(self, model: FluxTransformer2DModel, behind: Mapping[str, int], tokens: int) -> None:
        super().__init__()
        self.ear, self.rows = Ear(model, behind["heard"], tokens), TextRows(model, behind)

    def frozen(self) -> "Reader":
        """A copy that stays as it is."""
        return copy.deepcopy(self).eval().requires_grad_(False)

    @torch.no_grad()
    def told(self, noise: Tensor, text: Encoded) -> tuple[Tensor, Tensor]:
        """Of all text rows what is heard `[B, T, 16]` and what they tell of places `[B, T, 18]`."""
        words, conditioning = self.ear.rows(noise, text)
        return words[..., :CHANNELS], self.rows(words, conditioning)["place"]

    def scenes(self, captions: Sequence[Caption], noise: Tensor, text: Encoded, names: Named) -> tuple[list[Scene], Tensor]:
        """The scenes nearest to what is told of places, and how far it is from them (see `farthest`)."""
        heard, places = self.told(noise, text)
        scenes = nearest_scenes(captions, names, levels_heard(heard, names), places)
        known = lessons(names, scenes)
        return scenes, farthest(places[known.samples, known.rows], known)


def nearest_scenes(captions: Sequence[Caption], names: Named, said: NDArray[np.float64], told: Tensor) -> list[Scene]:
    """The scenes of captions and values `[B, 16]` of channels nearest to what all text rows tell of places `[B, T, 18]`."""
    return [nearest(*each) for each in zip(captions, uniforms(said), told_stands(told, names, captions), strict=True)]


@dataclass(frozen=True)
class Heard:
    """A batch: captions and where their names stand, the values `[B, 16]` of channels, text rows behind the last block that hears
    `[B, T, 128]`, and what conditions blocks `[B, 128]`.
    """

    captions: Sequence[Caption]
    names: Named
    said: NDArray[np.float64]
    words: Tensor
    conditioning: Tensor

    def meant(self) -> Lessons:
        """What is taught of the scenes that the noises mean by themselves."""
        return lessons(self.names, [meant(*each) for each in zip(self.captions, uniforms(self.said), strict=True)])

    def nearest(self, told: Tensor) -> Lessons:
        """What is taught of the scenes nearest to what all text rows tell of places `[B, T, 18]`."""
        return lessons(self.names, nearest_scenes(self.captions, self.names, self.said, told))


@dataclass(frozen=True)
class HeardBatches(Dataset[Heard]):
    """Batches, each a function of its index and of the seed of the sounds."""

    sounds: Sounds
    ear: Ear

    def __getitem__(self, index: int) -> Heard:
        captions, noise, text, names = self.sounds[index]
        with torch.no_grad():
            words, conditioning = self.ear.rows(noise, text)
        return Heard(captions, names, levels_heard(words[..., :CHANNELS], names), words, conditioning)


def read_alone(
    rows: TextRows, batches: HeardBatches, folder: Path, *, steps: int, rate: float, own: bool, compiled: bool = True,
    processes: Processes = ALONE,
) -> TextRows:  # fmt: skip
    """Train the text rows from the last checkpoint in `folder`.

    `own`: taught is the scene nearest to what the rows tell already, not the one that the noise means by itself.
    """
    ahead: Ahead[Heard] | None = None
    forward = torch.compile(rows) if compiled else rows

    def losses(step: int, _of_pass: int) -> tuple[Tensor, dict[str, Tensor]]:
        nonlocal ahead
        ahead = ahead or Ahead(batches, step, steps, processes)
        batch = next(ahead)
        said = forward(batch.words, batch.conditioning)
        known = batch.nearest(said["place"].detach()) if own else batch.meant()
        told = {step: each[known.samples, known.rows] for step, each in said.items()}
        wrong = {step: _error(step, each, known.features[step]) for step, each in told.items()}
        loss = torch.stack([WEIGHTS[step] * each for step, each in wrong.items()]).sum()
        return loss, wrong | _whole(told["place"], known)

    return train_model(
        rows, losses, folder, steps=steps, samples=batches.sounds.size, rate=rate, warmup=100, decay=steps // 3, average=0.998,
        muon="blocks", muon_rate=2 * rate, processes=processes,
    )  # fmt: skip


def _error(step: str, told: Tensor, wanted: Tensor) -> Tensor:
    """The mean squared error; of places log(1 + (d / `SHARP`)²) for an error of d cells along an axis (Cauchy's loss)."""
    squares = (told - wanted).square()
    if step not in FEATURES:
        return squares.mean()
    axes = squares[:, :16].unflatten(1, (2, 2, -1)).sum((1, 3))
    return torch.log1p(axes / (SHARP**2 * (FREQUENCIES / 2).square().sum())).mean() + squares[:, 16:].mean()


@torch.no_grad()
def farthest(told: Tensor, known: Lessons) -> Tensor:
    """Of each caption the largest distance `[B]`, cells along an axis, of where an object is told `[n, 18]` from what is taught."""
    away = (cells(told) - cells(known.features["place"])).abs().amax(1)
    return torch.zeros(int(known.samples[-1]) + 1).scatter_reduce(0, known.samples, away, "amax")


def _whole(told: Tensor, known: Lessons) -> dict[str, Tensor]:
    """By number of objects the share of captions all of whose objects `told` `[n, 18]` are within a cell of what is taught.

    `exact`: of captions of more than two objects, within a quarter of a cell.
    """
    objects, far = torch.bincount(known.samples), farthest(told, known)
    whole = {f"whole_{count}": (far[objects == count] < 1).double().mean() for count in (2, 3, 4)}
    return whole | {"exact": (far[objects > 2] <= 0.25).double().mean()}
