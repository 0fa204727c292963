"""Architectures of hub checkpoints as their public config.json files state them.

They let the memory of a gated 34 GB checkpoint be planned before a byte of it is there. A local folder's own
files win.
"""

from typing import Any, Final

_FLUX: Final[dict[str, Any]] = {
    "_class_name": "FluxTransformer2DModel",
    "patch_size": 1,
    "in_channels": 64,
    "num_layers": 19,
    "num_single_layers": 38,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
}
_CLIP_L: Final[dict[str, Any]] = {
    "architectures": ["CLIPTextModel"],
    "model_type": "clip_text_model",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "vocab_size": 49408,
    "projection_dim": 768,
    "max_position_embeddings": 77,
}
_T5_XXL: Final[dict[str, Any]] = {
    "architectures": ["T5EncoderModel"],
    "model_type": "t5",
    "vocab_size": 32128,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}
_FLUX_VAE: Final[dict[str, Any]] = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "latent_channels": 16,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}


def _flux(guidance_embeds: bool) -> dict[str, dict[str, Any]]:
    return {
        "transformer": {**_FLUX, "guidance_embeds": guidance_embeds},
        "text_encoder": _CLIP_L,
        "text_encoder_2": _T5_XXL,
        "vae": _FLUX_VAE,
    }


PUBLISHED: Final[dict[str, dict[str, dict[str, Any]]]] = {
    "black-forest-labs/FLUX.1-schnell": _flux(guidance_embeds=False),
    "black-forest-labs/FLUX.1-dev": _flux(guidance_embeds=True),
}
"""Component configurations by hub id."""
