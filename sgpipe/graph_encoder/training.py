"""The pre-training of a graph encoder; a kill does not disturb it: every draw is a function of (seed, step)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sgpipe.errors import DataError
from sgpipe.graph_encoder.batches import Names
from sgpipe.graph_encoder.checkpoints import Encoder
from sgpipe.graph_encoder.config import GraphEncoder
from sgpipe.graph_encoder.examples import Examples
from sgpipe.graph_encoder.features import Features
from sgpipe.graph_encoder.pretraining import (
    ImageFeatures,
    ImageHead,
    Reconstruction,
    clamp_logit_scale,
    hard_negatives,
    pretraining_losses,
    restated,
)
from sgpipe.optim.engine import Engine
from sgpipe.optim.log import Interval
from sgpipe.optim.schedules import trapezoid
from sgpipe.optim.weights import tensors_of
from sgpipe.relations.predicates import DIRECTIONAL

SAVE_SECONDS: Final = 20.0
CURVES: Final = {"loss": "loss/train", "gradient_norm": "optimiser/gradient_norm"}
Log = Callable[[int, Mapping[str, float]], None]


class Learner(nn.Module):
    """What is trained together: the graph encoder, the head that pools the tower's patches, the reconstruction block."""

    def __init__(self, encoder: Encoder, shape: tuple[int, int], params: GraphEncoder, device: torch.device) -> None:
        super().__init__()
        patches, features = shape
        self.encoder = encoder
        self.head = ImageHead(features, patches, encoder.config.embed, params.queries)
        self.reconstruction = Reconstruction(features, 3 * encoder.config.embed, patches)
        self.to(device)


@dataclass(frozen=True)
class Lessons:
    """What is learned from: `rows` of `examples`, features of their crops, and what names mean to the encoder."""

    examples: Examples
    features: Features
    rows: NDArray[np.int64]
    names: Names

    @cached_property
    def _kinds(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows that state a directional relation, and the others."""
        stated = self.examples.frame["predicate"].is_in(list(DIRECTIONAL)).to_numpy()[self.rows]
        return self.rows[stated], self.rows[~stated]

    def draw(self, rng: np.random.Generator, params: GraphEncoder) -> list[int]:
        """The rows of one step: all alike, or a share `params.directional` of directional ones.

        A kind with fewer rows than its share repeats some. Raises `DataError` for a kind that has none.
        """
        if params.directional is None:
            return rng.choice(self.rows, params.batch_size, replace=False).tolist()
        first = round(params.batch_size * params.directional)
        drawn: list[int] = []
        for rows, count in zip(self._kinds, (first, params.batch_size - first), strict=True):
            if count and not len(rows):
                raise DataError(
                    f"graph_encoder.directional: got {params.directional:g}, and all or none of the {len(self.rows)} training "
                    f"relations are directional; set it to null"
                )
            drawn += rng.choice(rows, count, replace=len(rows) < count).tolist() if count else []
        return drawn

    def images(self, rows: Sequence[int], head: ImageHead, device: torch.device, masked: int | None = None) -> ImageFeatures:
        """Features of the crops of these rows, for the masked loss of the first `masked` (None: all)."""
        crops = self.examples.crop[rows].tolist()
        patches = self.features.get("patches", crops).to(device)
        rest, region = (self.features.get(name, crops[:masked]).to(device) for name in ("rest", "region"))
        return ImageFeatures(head(patches), patches[:masked], rest, region)


def learning_rate(step: int, steps: int) -> float:
    """Share of the highest learning rate: warm-up over a twentieth of the steps, constant, decay over the last two fifths."""
    return trapezoid(step, steps // 20, (1 - step / steps) / 0.4)


def pretrain(learner: Learner, lessons: Lessons, params: GraphEncoder, state: Path, log: Log) -> None:
    """Train in place, from `state`'s last good checkpoint. Raises `StateError` for a loss that is not finite and a full disk."""
    device = next(learner.parameters()).device
    matrices = [p for p in learner.parameters() if p.ndim >= 2]
    others = [p for p in learner.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": params.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, params.rate, betas=(0.9, 0.98))

    def losses(step: int, _: int) -> tuple[Tensor, dict[str, Tensor]]:
        parts = _losses(learner, lessons, params, step, device)
        return parts["contrastive"] + params.masked_weight * parts["masked"], parts

    def logged(interval: Interval) -> None:
        curves = {CURVES.get(name, f"loss_terms/{name}"): value for name, value in interval.means.items()}
        log(interval.step, {**curves, "optimiser/learning_rate": interval.learning_rate})

    engine = Engine(
        tensors_of(learner), [optimizer], losses, lambda step: learning_rate(step, params.steps),
        steps=params.steps, samples=params.batch_size, advice=f"lower graph_encoder.rate ({params.rate:g})", clip=1.0,
        folder=state, save_seconds=SAVE_SECONDS, logged=logged, after=lambda _: clamp_logit_scale(learner.encoder),
        progress="",
    )  # fmt: skip
    engine.resume()
    learner.train()
    engine.run()
    learner.eval()


def _losses(learner: Learner, lessons: Lessons, params: GraphEncoder, step: int, device: torch.device) -> dict[str, Tensor]:
    rng = np.random.default_rng((params.seed, step))
    rows = lessons.draw(rng, params)
    graphs = [restated(lessons.examples.graphs[row], rng) for row in rows]
    negatives = [hard_negatives(graph, rng) for graph in graphs]
    crop = torch.from_numpy(lessons.examples.crop[rows])
    images = lessons.images(rows, learner.head, device, params.masked_batch)
    return pretraining_losses(
        learner.encoder, learner.reconstruction, graphs, negatives, lessons.names, images, same_image=crop[:, None] == crop
    )
