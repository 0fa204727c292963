"""The sampler against `FluxPipeline` itself, and what it promises beyond."""

import itertools
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline

from sgpipe.backbones.config import Backbone
from sgpipe.backbones.denoiser import Denoiser
from sgpipe.backbones.families import open_text_encoders
from sgpipe.backbones.families.flux import image_ids, pack, unpack
from sgpipe.backbones.images import decode
from sgpipe.backbones.loading import load_module
from sgpipe.backbones.rectified_flow import euler_step, noise
from sgpipe.errors import ModelError
from sgpipe.params.load import read_section
from tests.tiny import SIDE, TOKENS, backbone_of

CPU = torch.device("cpu")
TEXTS, SEEDS = ["a photo of dog above cat on a plain background", "", "a photo of ball"], [3, 1, 2]


@cache
def loaded(folder: Path, dtype: str = "float32"):
    """Denoiser and text encoders of a folder; tests only read them."""
    backbone = backbone_of(folder, dtype=dtype)
    return Denoiser.load(backbone, CPU), open_text_encoders(backbone, CPU)


def pipeline_latents(pipeline, texts, latents, steps, guidance, side, tokens):
    """What `FluxPipeline` makes of packed noise, as packed latents."""
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        texts,
        height=side,
        width=side,
        num_inference_steps=steps,
        guidance_scale=guidance or 0.0,
        max_sequence_length=tokens,
        latents=latents,
        output_type="latent",
    ).images


def test_packing_is_that_of_the_pipeline_and_undone():
    latents = torch.randn(2, 4, 6, 8)
    assert torch.equal(pack(latents), FluxPipeline._pack_latents(latents, *latents.shape))
    assert torch.equal(unpack(pack(latents), 6, 8), latents)
    ids = FluxPipeline._prepare_latent_image_ids(1, 3, 4, CPU, torch.float32)
    assert torch.equal(image_ids(3, 4, latents), ids)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("kind", "guidance", "steps"), [("schnell", None, 4), ("dev", 3.5, 5)])
def test_sampling_equals_the_pipeline(kind, guidance, steps, dtype, request):
    folder = request.getfixturevalue(kind)
    denoiser, encoders = loaded(folder, dtype)
    prompts = encoders.prompts(TEXTS)
    mine = denoiser.sample(prompts, SEEDS, SIDE, steps, guidance)
    pipeline = FluxPipeline.from_pretrained(folder, torch_dtype=denoiser.dtype)
    start = pack(noise(SEEDS, denoiser.layout.latent_shape(SIDE)).to(denoiser.dtype))
    theirs = pipeline_latents(pipeline, TEXTS, start, steps, guidance, SIDE, TOKENS)
    assert torch.equal(pack(mine), theirs)


def test_sampling_equals_the_pipeline_for_the_embedded_checkpoint(repo_root: Path, monkeypatch):
    monkeypatch.chdir(repo_root)
    backbone = read_section(Path("params.yaml"), "backbone", Backbone)
    if not Path(backbone.model).is_dir():
        pytest.skip(f"{backbone.model} is absent: `dvc pull models.dvc` gets it")
    texts, side = [TEXTS[0]], backbone.resolution
    denoiser = Denoiser.load(backbone, CPU)
    mine = denoiser.sample(open_text_encoders(backbone, CPU).prompts(texts), [11], side, 4)
    pipeline = FluxPipeline.from_pretrained(backbone.model)
    pipeline.set_progress_bar_config(disable=True)
    given = {
        "height": side,
        "width": side,
        "num_inference_steps": 4,
        "guidance_scale": 0.0,
        "max_sequence_length": backbone.max_sequence_length,
    }
    theirs = []

    def keep(pipeline, step, t, values):
        theirs.append(values["latents"])
        return {}

    seeded = [torch.Generator().manual_seed(11)]
    image = pipeline(texts, generator=seeded, output_type="np", callback_on_step_end=keep, **given).images
    assert torch.equal(pack(mine), theirs[-1])
    ours = decode(denoiser.family, load_module(backbone, "vae"), mine)
    assert np.array_equal(ours, (image * 255).round().astype(np.uint8))


def test_a_picture_does_not_depend_on_its_batch(schnell: Path):
    denoiser, encoders = loaded(schnell)
    together = denoiser.sample(encoders.prompts(TEXTS), SEEDS, SIDE, 2)
    for i, (text, seed) in enumerate(zip(TEXTS, SEEDS, strict=True)):
        alone = denoiser.sample(encoders.prompts([text]), [seed], SIDE, 2)
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=2e-5)


def test_sampling_is_its_euler_steps(schnell: Path):
    denoiser, encoders = loaded(schnell)
    prompts = encoders.prompts(TEXTS)
    taken = []

    def velocity(latents, at):
        taken.append((latents, at, denoiser.velocity(latents, at, prompts)))
        return taken[-1][2]

    sampled = denoiser.sample(prompts, SEEDS, SIDE, 3, velocity=velocity)
    times = [at.unique().item() for _, at, _ in taken] + [0.0]
    assert times[0] == 1.0 and times == sorted(times, reverse=True) and len(times) == 4
    assert torch.equal(taken[0][0], noise(SEEDS, denoiser.layout.latent_shape(SIDE)))
    after = [latents for latents, _, _ in taken[1:]] + [sampled]
    for (before, _, v), (t, t_next), following in zip(taken, itertools.pairwise(times), after, strict=True):
        assert torch.equal(euler_step(before, v, t, t_next), following)
    assert torch.equal(sampled, denoiser.sample(prompts, SEEDS, SIDE, 3))


def test_gradients_reach_what_the_velocity_depends_on(schnell: Path):
    denoiser, encoders = loaded(schnell)
    prompts = encoders.prompts(TEXTS[:1])
    latents = noise([0], denoiser.layout.latent_shape(SIDE)).requires_grad_()
    denoiser.velocity(latents, torch.tensor([0.7]), prompts).square().mean().backward()
    assert latents.grad is not None and latents.grad.abs().sum() > 0


@pytest.mark.parametrize(("kind", "guidance"), [("schnell", 3.5), ("dev", None)])
def test_guidance_must_fit_the_transformer(kind, guidance, request):
    denoiser, encoders = loaded(request.getfixturevalue(kind))
    prompts = encoders.prompts([""])
    with pytest.raises(ModelError, match=f"guidance: got {guidance}"):
        denoiser.sample(prompts, [0], SIDE, 1, guidance)
