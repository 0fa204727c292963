"""Published configurations of checkpoints, by hub id: their sizes without their weights."""

from typing import Any, Final

_FLUX: Final[dict[str, Any]] = {
    "_class_name": "FluxTransformer2DModel", "patch_size": 1, "in_channels": 64, "num_layers": 19, "num_single_layers": 38,
    "attention_head_dim": 128, "num_attention_heads": 24, "joint_attention_dim": 4096, "pooled_projection_dim": 768,
}  # fmt: skip
_CLIP_L: Final[dict[str, Any]] = {
    "architectures": ["CLIPTextModel"], "model_type": "clip_text_model", "hidden_size": 768, "intermediate_size": 3072,
    "num_hidden_layers": 12, "num_attention_heads": 12, "vocab_size": 49408, "projection_dim": 768,
    "max_position_embeddings": 77,
}  # fmt: skip
_T5_XXL: Final[dict[str, Any]] = {
    "architectures": ["T5EncoderModel"], "model_type": "t5", "vocab_size": 32128, "d_model": 4096, "d_kv": 64, "d_ff": 10240,
    "num_layers": 24, "num_heads": 64, "feed_forward_proj": "gated-gelu",
}  # fmt: skip
_VAE: Final[dict[str, Any]] = {
    "_class_name": "AutoencoderKL", "block_out_channels": [128, 256, 512, 512], "latent_channels": 16, "layers_per_block": 2,
    "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4, "norm_num_groups": 32,
    "use_quant_conv": False, "use_post_quant_conv": False,
}  # fmt: skip
_FLUX2: Final[dict[str, Any]] = {
    "_class_name": "Flux2Transformer2DModel", "patch_size": 1, "in_channels": 128, "num_layers": 8, "num_single_layers": 48,
    "attention_head_dim": 128, "num_attention_heads": 48, "joint_attention_dim": 15360, "guidance_embeds": True,
}  # fmt: skip
_FLUX2_KLEIN: Final[dict[str, Any]] = {
    **_FLUX2, "num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24, "joint_attention_dim": 7680,
    "guidance_embeds": False,
}  # fmt: skip
_FLUX2_VAE: Final[dict[str, Any]] = {
    "_class_name": "AutoencoderKLFlux2", "block_out_channels": [128, 256, 512, 512], "latent_channels": 32, "layers_per_block": 2,
    "patch_size": [2, 2],
}  # fmt: skip
_MISTRAL_SMALL: Final[dict[str, Any]] = {
    "architectures": ["Mistral3ForConditionalGeneration"], "model_type": "mistral3", "tie_word_embeddings": False,
    "text_config": {
        "model_type": "mistral", "vocab_size": 131072, "hidden_size": 5120, "intermediate_size": 32768, "num_hidden_layers": 40,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
    },
    "vision_config": {
        "model_type": "pixtral", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
        "head_dim": 64, "patch_size": 14, "image_size": 1540,
    },
}  # fmt: skip
_QWEN3_4B: Final[dict[str, Any]] = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "vocab_size": 151936, "hidden_size": 2560,
    "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
    "tie_word_embeddings": True,
}  # fmt: skip
PUBLISHED: Final[dict[str, dict[str, dict[str, Any]]]] = {
    f"black-forest-labs/FLUX.1-{name}": {
        "transformer": {**_FLUX, "guidance_embeds": guidance},
        "text_encoder": _CLIP_L,
        "text_encoder_2": _T5_XXL,
        "vae": _VAE,
    }
    for name, guidance in (("schnell", False), ("dev", True))
} | {
    f"black-forest-labs/FLUX.2-{name}": {"transformer": transformer, "text_encoder": text_encoder, "vae": _FLUX2_VAE}
    for name, transformer, text_encoder in (
        ("dev", _FLUX2, _MISTRAL_SMALL),
        ("klein-4B", _FLUX2_KLEIN, _QWEN3_4B),
        ("klein-base-4B", _FLUX2_KLEIN, _QWEN3_4B),
    )
}
"""config.json of parts by hub id, as published: a gated 34 GB checkpoint is planned before a byte of it is there.

Not compared with the hub: FLUX.2-dev's are the defaults of its classes in diffusers 0.42 and transformers 5.23 (but that its text
encoder's output matrix is its own), FLUX.2-klein's come from public uses of it.
"""
