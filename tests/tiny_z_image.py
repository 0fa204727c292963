"""A tiny Z-Image pipeline of random weights, in the published format."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3Model

from tests.tiny import tiny_vae
from tests.tiny_flux2 import QWEN_CHAT, byte_pairs

LAYERS, LENGTH = 3, 64
"""Shared layers, and tokens of a prompt with its template."""


def z_image_transformer(layers: int = LAYERS, channels: int = 4, width: int = 24, seed: int = 0) -> ZImageTransformer2DModel:
    """2 heads of 16, 2 + 2 refiners; every parameter random, norms and the vectors of padding included."""
    model = ZImageTransformer2DModel(
        in_channels=channels, dim=32, n_layers=layers, n_heads=2, n_kv_heads=2, cap_feat_dim=width, axes_dims=[4, 6, 6],
        axes_lens=[256, 32, 32],
    ).eval()  # fmt: skip
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(0.15 * torch.randn(value.shape, generator=draw) + ("norm" in name or name == "cap_embedder.0.weight"))
    return model


def write_z_image_pipeline(folder: Path, *, seed: int = 0, **scheduler: Any) -> Path:
    """A `ZImagePipeline` folder with the scheduler of Z-Image-Turbo, but for what `scheduler` says otherwise."""
    torch.manual_seed(seed)
    state = json.loads(byte_pairs(["<|endoftext|>"], "user\n", "assistant\n", "<think>\n\n</think>\n\n").to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=state["vocab"],
        merges=[tuple(merge) for merge in state["merges"]],
        extra_special_tokens=["<|im_start|>", "<|im_end|>"],
        chat_template=QWEN_CHAT,
        model_max_length=1000,
    )
    text = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=12,
        initializer_range=0.3,
    )
    ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**{"use_dynamic_shifting": False, "shift": 3.0, **scheduler}),
        vae=tiny_vae(),
        text_encoder=Qwen3Model(text),
        tokenizer=tokenizer,
        transformer=z_image_transformer(seed=seed),
    ).save_pretrained(folder, safe_serialization=True)
    return folder
