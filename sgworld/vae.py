"""The embedded `AutoencoderKL`: 64 px pictures to 16×16 latents of 4 channels."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from numpy.typing import NDArray
from torch import Tensor

from sgworld.bank import SIDE, Bank, to_unit
from sgworld.training import quick_products, step_generator, train_model

CHANNELS = 4
CROP, CROPPED = 32, 0.75
"""Side of the crops that the first part of the training sees, pixels, and the share of steps that it takes."""
LATENT_NOISE, WORST = 0.08, 160
"""Of the decoder's training alone: noise of its latents, by their spread, and how many pixels of an image count once more."""
KL_WEIGHT = 1e-4
"""Weight of the mean KL divergence per latent value against the mean squared error on −1…1 pixels."""


def build_vae(seed: int) -> AutoencoderKL:
    """Two halvings (factor 4), no attention; 4 latent channels."""
    torch.manual_seed(seed)
    return AutoencoderKL(
        block_out_channels=(24, 48, 96),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=CHANNELS,
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=64,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        force_upcast=False,
        scaling_factor=1.0,
        shift_factor=0.0,
    )


def _loss(vae: AutoencoderKL, pixels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Evidence bound (Kingma & Welling 2014, eq. 7) with a light prior, plus an absolute error that keeps edges sharp.

    Returns the loss and the squared error alone.
    """
    moments = DiagonalGaussianDistribution(vae.encode(pixels).latent_dist.parameters.float())
    decoded = vae.decode(moments.sample(generator)).sample.float()
    error = F.mse_loss(decoded, pixels)
    prior = KL_WEIGHT * moments.kl().mean() / moments.mean[0].numel()
    return error + 0.1 * F.l1_loss(decoded, pixels) + prior, error


def train_vae(bank: Bank, folder: Path, out: Path, *, seed: int, steps: int, batch: int, rate: float) -> None:
    """Train and save to `out`; `scaling_factor` and `shift_factor` make the latents zero-mean and unit-variance."""
    vae = build_vae(seed)

    def losses(step: int, _: int) -> tuple[Tensor, dict[str, Tensor]]:
        rng = np.random.default_rng((seed, step))
        rows = np.sort(rng.choice(len(bank.triples), batch, replace=False))
        pixels = torch.from_numpy(to_unit(bank.pictures[rows]))
        if step < steps * CROPPED:
            top, left = rng.integers(0, SIDE - CROP + 1, size=2)
            pixels = pixels[:, :, top : top + CROP, left : left + CROP]
        with quick_products():
            loss, error = _loss(vae, pixels, step_generator(seed, step))
        return loss, {"mse": error}

    train_model(vae, losses, folder, steps=steps, samples=batch, rate=rate, decay=steps // 2, average=0.99, warmup=50)
    means = encode(vae, bank.pictures[:2048])
    vae.register_to_config(scaling_factor=float(1.0 / means.std()), shift_factor=float(means.mean()))
    vae.save_pretrained(out, safe_serialization=True)


def train_decoder(
    vae: AutoencoderKL, pictures: NDArray[np.uint8], folder: Path, *, seed: int, steps: int, batch: int, rate: float
) -> None:
    """Train the decoder on, in place, while the latents stay as they are.

    Latents get noise, as a generator's have it; the worst `WORST` pixels of an image count once more, since small marks are lost in
    the mean over all.
    """
    vae.encoder.requires_grad_(False)
    means = torch.from_numpy(encode(vae, pictures))

    def losses(step: int, _: int) -> tuple[Tensor, dict[str, Tensor]]:
        rows = np.sort(np.random.default_rng((seed, step)).choice(len(pictures), batch, replace=False))
        pixels, latents = torch.from_numpy(to_unit(pictures[rows])), means[rows]
        noise = torch.randn(latents.shape, generator=step_generator(seed, step)) * (LATENT_NOISE / vae.config.scaling_factor)
        with quick_products():
            decoded = vae.decode(latents + noise).sample.float()
        squares = (decoded - pixels).square()
        worst = squares.mean(1).flatten(1).topk(WORST).values.mean()
        return squares.mean() + 0.1 * F.l1_loss(decoded, pixels) + 0.05 * worst, {"mse": squares.mean(), "worst": worst}

    decay = steps * 3 // 5
    train_model(vae, losses, folder, steps=steps, samples=batch, rate=rate, decay=decay, average=0.98, warmup=30, weight_decay=0.0)
    vae.encoder.requires_grad_(True)


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: NDArray[np.uint8], batch: int = 128) -> NDArray[np.float32]:
    """Posterior means `[N, 4, 16, 16]`, not shifted and scaled; in the faster precision, far within the posterior's deviation."""
    with quick_products():
        parts = [
            vae.encode(torch.from_numpy(to_unit(pictures[start : start + batch]))).latent_dist.mean.float()
            for start in range(0, len(pictures), batch)
        ]
    return torch.cat(parts).numpy()


@torch.no_grad()
def psnr(vae: AutoencoderKL, pictures: NDArray[np.uint8], batch: int = 64) -> float:
    """Mean over pictures of 10 log₁₀(255² / MSE) between pictures and their reconstructions from the posterior mean, dB."""
    values = []
    for start in range(0, len(pictures), batch):
        pixels = torch.from_numpy(to_unit(pictures[start : start + batch]))
        decoded = vae.decode(vae.encode(pixels).latent_dist.mean).sample.clamp(-1, 1)
        values.append(10 * torch.log10(4.0 / (decoded - pixels).square().mean(dim=(1, 2, 3))))
    return float(torch.cat(values).mean())
