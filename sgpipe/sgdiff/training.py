"""Training of SGDiff's noise predictor: ε of a noisy latent under its graph, mean squared error, the graph encoder frozen.

As the official training: t uniform over the 1000 timesteps, AdamW with a constant learning rate, no clipping, the condition never
dropped, and an average of the weights with decay min(d, (1 + n)/(10 + n)) that is sampled with. A step is one forward and backward
of the U-Net; what it draws is a function of (seed, step), so a training that was killed goes on as if it had not been.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from sgpipe.backbones.latent_cache import LatentCache
from sgpipe.backbones.rectified_flow import generator
from sgpipe.errors import DataError, ModelError
from sgpipe.graph_encoder.cgip import Cgip
from sgpipe.graph_encoder.checkpoints import load_encoder
from sgpipe.graphs.scene_graph import SceneGraph
from sgpipe.optim.engine import Engine
from sgpipe.optim.log import Interval
from sgpipe.optim.weights import Average, tensors_of
from sgpipe.sgdiff.config import Twin
from sgpipe.sgdiff.model import SgDiff
from sgpipe.sgdiff.networks import NoisePredictor, PredictorConfig
from sgpipe.sgdiff.schedule import diffused
from sgpipe.sgdiff.steps import TIMESTEPS

DOWNSAMPLINGS = 2
"""Of the U-Net: latents' sides must be multiples of 4."""


@dataclass(frozen=True)
class TrainingSet:
    """Latents by triple id, and of each triple's graph the local rows `[N, 15, 3·C]` and the vector `[N, C]`."""

    ids: Sequence[str]
    latents: LatentCache
    local: Tensor
    pooled: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, model: SgDiff, ids: Sequence[str], graphs: Sequence[SceneGraph], latents: LatentCache) -> Self:
        """Graphs are encoded once, since the encoder is frozen. Raises `DataError` where there are none, or a name is unknown."""
        if not ids:
            raise DataError("train_sgdiff: no train triples are left; run `dvc repro curate cache_latents`")
        parts = [model.encode(graphs[start : start + 512]) for start in range(0, len(graphs), 512)]
        return cls(ids, latents, torch.cat([part.local for part in parts]), torch.cat([part.pooled for part in parts]))


def fresh_twin(folder: Path, vae: Any, resolution: int, params: Twin, seed: int, device: torch.device) -> SgDiff:
    """A generator with an untrained noise predictor of this seed, the graph encoder in `folder` and the VAE of the latents.

    Raises `ModelError` for an encoder that is no CGIP, and a VAE whose latents the U-Net cannot take.
    """
    encoder, vocabulary = load_encoder(folder)
    if not isinstance(encoder, Cgip) or vocabulary is None:
        raise ModelError(f"{folder}: no CGIP encoder, on which SGDiff is conditioned; set graph_encoder.kind to cgip")
    if type(vae).__name__ != "AutoencoderKL":
        raise ModelError(f"vae: a {type(vae).__name__}; a twin is trained on the latents of an AutoencoderKL (FLUX.1, SD3)")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = PredictorConfig(base=params.base, context=encoder.config.embed, channels=vae.config.latent_channels)
        predictor = NoisePredictor(config)
    model = SgDiff(encoder, vocabulary, predictor, vae, resolution).to(device)
    side = model.latent_shape[1]
    if side % 2**DOWNSAMPLINGS:
        raise ModelError(f"backbone.resolution: got {resolution}, latents of {side}; the U-Net needs a multiple of 4")
    return model


def train(
    model: SgDiff, data: TrainingSet, params: Twin, seed: int, folder: Path, log: Callable[[Interval], None] = lambda _: None
) -> Engine:
    """Train the noise predictor in place, from the last good checkpoint in `folder`; the weights are then the averaged ones.

    Raises `StateError` for a loss that is not finite, and a full disk.
    """
    predictor, device = model.predictor.requires_grad_(True), model.device
    weights = dict(predictor.named_parameters())
    optimiser = torch.optim.AdamW(
        weights.values(), params.learning_rate, betas=(0.9, 0.999), weight_decay=params.weight_decay, foreach=True
    )

    def losses(step: int, pass_: int) -> tuple[Tensor, dict[str, Tensor]]:
        random = generator(seed, "sgdiff", step)
        rows = torch.randint(len(data.ids), (params.batch_size,), generator=random)
        t = torch.randint(TIMESTEPS, (params.batch_size,), generator=random)
        latents = data.latents.latents([data.ids[row] for row in rows.tolist()])
        noise = torch.randn(latents.shape, generator=random).to(device)
        context = predictor.context(data.local[rows.to(device)], data.pooled[rows.to(device)])
        noisy = diffused(latents.to(device), noise, t.to(device))
        return F.mse_loss(predictor(noisy, t.to(device), context), noise), {}

    engine = Engine(
        tensors_of(predictor), [optimiser], losses, lambda _: 1.0,
        steps=params.steps, samples=params.batch_size, advice=f"lower sgdiff.twin.learning_rate ({params.learning_rate:g})",
        average=Average(weights, params.ema_decay), folder=folder, save_every=params.save_every, logged=log, progress="",
    )  # fmt: skip
    engine.resume()
    engine.run()
    assert engine.average is not None
    with torch.no_grad():
        for name, value in engine.average.values.items():
            weights[name].copy_(value)
    predictor.requires_grad_(False)
    return engine
