"""What tells structure from leakage: shuffled labels, the names alone, and whether a probe follows the image or the word."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from sgpipe.errors import DataError
from sgpipe.probes.data import Indices, MapSet, Pairs
from sgpipe.probes.fit import mean
from sgpipe.probes.splits import Split

NAME_EPOCHS, NAME_RATE = 60, 3e-3
"""Most epochs and highest learning rate of the probe on names."""
NEEDED = ("relational", "wrong", "neutral")
"""Conditions under which a real image must have been seen for the relation-word trace."""


def shuffled(labels: Indices, triples: Indices, split: Split, seed: int) -> Indices:
    """Labels permuted within the training, validation and test rows: the counts stay, what they were of is gone."""
    mixed, draw = labels.copy(), np.random.default_rng((seed, 1))
    for part in ("train", "val", "test"):
        rows = split.rows(triples, part)
        mixed[rows] = labels[draw.permutation(rows)]
    return mixed


class NameSource:
    """Embeddings of the subject's and the object's name `[N, 2 d]` of each row."""

    def __init__(self, pairs: Pairs, embeddings: Mapping[str, Tensor], rows: Indices) -> None:
        each = [torch.cat([embeddings[name] for name in pair]).float() for pair in pairs.names]
        self.table, self.of_row = torch.stack(each), rows

    def batch(self, rows: Indices) -> Tensor:
        """`[B, 2 d]`."""
        return self.table[torch.from_numpy(self.of_row[rows])]


class NameProbe(nn.Module):
    """A linear classifier of standardised name embeddings."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, mean: Tensor, deviation: Tensor, classes: int) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("deviation", torch.where(deviation > 0, deviation, 1.0))
        self.linear = nn.Linear(len(mean), classes)

    def forward(self, embeddings: Tensor) -> Tensor:
        return self.linear((embeddings - self.mean) / self.deviation)


def check_conditions(maps: MapSet) -> None:
    """Raise `DataError` unless the maps hold the images under the true, a wrong and a neutral prompt."""
    missing = [name for name in NEEDED if name not in set(maps.conditions)]
    if missing:
        raise DataError(
            f"{maps.path}: no maps under {', '.join(missing)} prompts; set saliency_noised.conditions to [{', '.join(NEEDED)}]"
        )


def word_trace(maps: MapSet, rows: Indices, predicted: Indices) -> dict[str, float | None]:
    """Accuracies of predictions `[N]` for rows of maps of noised real images.

    true, wrong, neutral: towards the image's relation, under the prompt that names it, names another, or names none.
    wrong_towards_word: under the wrong prompt, towards the relation that the prompt names: high in a probe that follows the word.
    None where there is no such row.
    """
    right = predicted == maps.labels[rows]
    condition, said = maps.conditions[rows], maps.said[rows]
    found = {name: mean(right[condition == of]) for name, of in zip(("true", "wrong", "neutral"), NEEDED, strict=True)}
    named = (condition == "wrong") & (said >= 0)
    return {**found, "wrong_towards_word": mean((predicted == said)[named])}
