"""A tiny Krea 2 pipeline of random weights, in the real format."""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLQwenImage, FlowMatchEulerDiscreteScheduler, Krea2Pipeline, Krea2Transformer2DModel
from torch import nn
from transformers import Qwen3VLConfig, Qwen3VLModel

from tests.tiny_qwen_image import qwen_tokenizer

BLOCKS, WIDTH, LAYERS = 3, 8, 12
"""Blocks, and width and number of the text encoder's layers that are read."""


def scatter(model: nn.Module, seed: int) -> None:
    """Random tables and gains, which are zero when a Krea 2 is made, and so would hide what they do."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in model.parameters():
            if not value.any():
                value.copy_(0.3 * torch.randn(value.shape, generator=draw))


def tiny_transformer(blocks: int = BLOCKS, seed: int = 0) -> Krea2Transformer2DModel:
    """4 query heads of 16 on 2 heads of keys and values."""
    torch.manual_seed(seed)
    model = Krea2Transformer2DModel(
        in_channels=16,
        num_layers=blocks,
        attention_head_dim=16,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        timestep_embed_dim=32,
        text_hidden_dim=WIDTH,
        num_text_layers=LAYERS,
        text_num_attention_heads=2,
        text_num_key_value_heads=2,
        text_intermediate_size=16,
        axes_dims_rope=(4, 6, 6),
    )
    scatter(model, seed)
    return model


def write_krea2_pipeline(
    folder: Path, *, layers: tuple[int, ...] | None = None, distilled: bool = False, seed: int = 0, **scheduler: Any
) -> Path:
    """A `Krea2Pipeline` folder like Krea 2 Raw's, or with `distilled` Turbo's; `layers` are those read of the text encoder's 36."""
    transformer, tokenizer = tiny_transformer(seed=seed), qwen_tokenizer()
    text = {
        "hidden_size": WIDTH, "intermediate_size": 16, "num_hidden_layers": 36, "num_attention_heads": 2, "num_key_value_heads": 1,
        "head_dim": 8, "vocab_size": len(tokenizer), "initializer_range": 0.3,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [2, 1, 1], "mrope_interleaved": True},
    }  # fmt: skip
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": WIDTH}
    vision |= {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
    draw = torch.Generator().manual_seed(seed)
    vae = AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=torch.randn(4, generator=draw).tolist(),
        latents_std=(0.5 + torch.rand(4, generator=draw)).tolist(),
    )
    published = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15, "base_image_seq_len": 256}
    Krea2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**{**published, "max_image_seq_len": 6400, **scheduler}),
        vae=vae,
        text_encoder=Qwen3VLModel(Qwen3VLConfig(text_config=text, vision_config=vision)),
        tokenizer=tokenizer,
        transformer=transformer,
        text_encoder_select_layers=layers,
        is_distilled=distilled,
    ).save_pretrained(folder, safe_serialization=True)
    return folder
