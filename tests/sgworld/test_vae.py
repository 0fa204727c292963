"""The VAE's decoder trained on by itself."""

from pathlib import Path

import numpy as np
import torch

from sgworld.vae import build_vae, encode, psnr, train_decoder
from sgworld.world.certificate import drawn
from sgworld.world.raster import render


def test_a_decoder_is_trained_on_while_latents_stay(tmp_path: Path) -> None:
    vae = build_vae(0)
    pictures = np.stack([render(scene) for scene in drawn(3, 1)])
    latents, before = encode(vae, pictures), psnr(vae, pictures)
    encoder = {name: value.clone() for name, value in vae.encoder.state_dict().items()}
    train_decoder(vae, pictures, tmp_path, seed=0, steps=30, batch=8, rate=2e-3)
    assert all(torch.equal(value, encoder[name]) for name, value in vae.encoder.state_dict().items())
    assert np.array_equal(encode(vae, pictures), latents)
    assert psnr(vae, pictures) > before + 3
    assert all(each.requires_grad for each in vae.parameters())
