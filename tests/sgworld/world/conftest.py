"""What tests of this world share."""

import pytest
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline

from sgworld.flux import build_transformer
from sgworld.language import build_clip, build_t5, clip_tokenizer, t5_tokenizer
from sgworld.vae import build_vae
from sgworld.world.recipe import TOKENS
from tests.sgworld.world.small import POOL


@pytest.fixture(scope="module")
def pipeline() -> FluxPipeline:
    """Text encoders, VAE and generator of random weights."""
    clip, words = clip_tokenizer([caption.text() for caption in POOL], TOKENS), t5_tokenizer(TOKENS, ",")
    return FluxPipeline(
        FlowMatchEulerDiscreteScheduler(), build_vae(0).eval(), build_clip(clip).eval(), clip, build_t5(len(words)).eval(), words,
        build_transformer(0, 5),
    )  # fmt: skip
