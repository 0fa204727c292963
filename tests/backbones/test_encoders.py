"""Texts and images through their encoders, against the pipeline's own path."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from PIL import Image

from sgpipe.backbones.families import open_text_encoders
from sgpipe.backbones.families.flux import Flux
from sgpipe.backbones.images import crop_pixels, decode, encode
from sgpipe.backbones.loading import load_module
from sgpipe.backbones.text import EncodedTexts
from sgpipe.datasets.images import AnnotatedImage
from sgpipe.errors import DataError, ModelError
from tests.tiny import TOKENS, backbone_of

CPU = torch.device("cpu")
TEXTS = ["a photo of dog above cat on a plain background", "", "ball"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("offload", ["none", "model"])
def test_prompts_are_those_of_the_pipeline(schnell: Path, dtype, offload):
    backbone = backbone_of(schnell, dtype=dtype)
    mine = open_text_encoders(backbone, CPU, offload).prompts(TEXTS)
    pipeline = FluxPipeline.from_pretrained(schnell, transformer=None, vae=None, torch_dtype=getattr(torch, dtype))
    with torch.no_grad():
        states, pooled, _ = pipeline.encode_prompt(TEXTS, None, max_sequence_length=TOKENS)
    assert torch.equal(mine.states, states)
    assert torch.equal(mine.pooled, pooled)


def test_concepts_are_the_word_tokens_of_a_padded_encoding(schnell: Path):
    """'in front of' is three words of the tokenizer; the end token and the padding fall away, the first token never does."""
    encoders = open_text_encoders(backbone_of(schnell), CPU)
    texts = ["dog", "in front of", ""]
    whole = encoders.prompts(texts).states
    concepts = encoders.concepts(texts)
    assert [len(states) for states in concepts] == [1, 3, 1]
    for states, row in zip(concepts, whole, strict=True):
        assert torch.equal(states, row[: len(states)])


def test_texts_encoded_ahead_are_those_of_the_encoders(schnell: Path):
    """In any order and number; a text that was not named is refused."""
    encoders = open_text_encoders(backbone_of(schnell), CPU)
    ahead = EncodedTexts(encoders, [*TEXTS, *TEXTS], ["dog", "in front of", "dog"], batch=2)
    asked = ["ball", TEXTS[0], "ball"]
    mine, theirs = ahead.prompts(asked), encoders.prompts(asked)
    torch.testing.assert_close(mine.states, theirs.states)
    torch.testing.assert_close(mine.pooled, theirs.pooled)
    for states, wanted in zip(ahead.concepts(["in front of", "dog"]), encoders.concepts(["in front of", "dog"]), strict=True):
        torch.testing.assert_close(states, wanted)
    with pytest.raises(ModelError, match="'cat' was not encoded before its encoders were let go"):
        ahead.prompts(["cat"])


def test_an_encoding_that_is_not_finite_names_its_text(schnell: Path):
    encoders = open_text_encoders(backbone_of(schnell), CPU)
    encoders._encoders["text_encoder_2"].encoder.final_layer_norm.weight.data.fill_(float("inf"))
    with pytest.raises(ModelError, match="text_encoder_2: its result for 'ball' is not finite"):
        encoders.prompts(["ball"])


def test_a_crop_on_whole_pixels_is_exact_and_a_larger_one_is_not_aliased():
    pixels = np.random.default_rng(0).integers(0, 256, (50, 60, 3), dtype=np.uint8)
    assert np.array_equal(crop_pixels(AnnotatedImage(pixels, (60, 50)), (7.0, 3.0, 32.0, 32.0), 32), pixels[3:35, 7:39])
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    small = crop_pixels(AnnotatedImage(stripes, (64, 64)), (0.0, 0.0, 64.0, 64.0), 16).astype(float)
    assert np.abs(small[:, 2:-2] - 127.5).max() < 3


def test_a_crop_of_a_resized_copy_is_the_same_region():
    """Boxes are in annotated pixels: of a copy of twice the size the crop has twice the pixels, and none is resampled."""
    pixels = np.random.default_rng(0).integers(0, 256, (100, 120, 3), dtype=np.uint8)
    crop = crop_pixels(AnnotatedImage(pixels, (60, 50)), (7.0, 3.0, 32.0, 32.0), 64)
    assert np.array_equal(crop, pixels[6:70, 14:78])
    edge = crop_pixels(AnnotatedImage(pixels, (60, 50)), (28.0, 18.0, 32.0, 32.0), 64)
    assert np.array_equal(edge, pixels[36:, 56:])


@pytest.mark.parametrize("box", [(30.0, 0.0, 31.0, 10.0), (-1.0, 0.0, 5.0, 5.0), (0.0, 45.0, 5.0, 9.0)])
def test_a_crop_outside_the_image_is_refused(box):
    with pytest.raises(DataError, match="not inside the image of 60 × 50"):
        crop_pixels(AnnotatedImage(np.zeros((50, 60, 3), dtype=np.uint8), (60, 50)), box, 32)


def test_pictures_go_through_the_vae_as_in_the_pipeline(schnell: Path):
    images = np.random.default_rng(1).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    vae, pipeline = load_module(backbone_of(schnell), "vae"), FluxPipeline.from_pretrained(schnell)
    family = Flux()
    mean, std = encode(family, vae, list(images))
    inputs = pipeline.image_processor.preprocess([Image.fromarray(image) for image in images])
    posterior = pipeline.vae.encode(inputs).latent_dist
    assert torch.equal(mean, posterior.mean) and torch.equal(std, posterior.std)
    latents = torch.randn(2, 4, 16, 16)
    statistics = family.statistics(vae)
    torch.testing.assert_close(family.normalised(statistics, family.denormalised(statistics, latents)), latents)
    decoded = pipeline.vae.decode(latents / vae.config.scaling_factor + vae.config.shift_factor).sample
    theirs = pipeline.image_processor.postprocess(decoded.detach(), output_type="pil")
    assert np.array_equal(decode(family, vae, latents), np.stack([np.asarray(image) for image in theirs]))
