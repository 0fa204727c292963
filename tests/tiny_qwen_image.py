"""A tiny Qwen-Image pipeline of random weights, in the published format."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLQwenImage, FlowMatchEulerDiscreteScheduler, QwenImagePipeline, QwenImageTransformer2DModel
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

from sgworld.language import words
from tests.tiny import DOUBLE

TEMPLATE = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial relationships of "
    "the objects and background:<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)
"""That of `QwenImagePipeline`: 34 tokens before the prompt, 5 behind it."""


def qwen_tokenizer() -> Qwen2Tokenizer:
    """Byte-level pairs that make one token of each word of the template and of the world's language, as the published one does."""
    learned = Tokenizer(models.BPE())
    learned.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=4000, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), min_frequency=1
    )
    learned.train_from_iterator([TEMPLATE, *words(), *(f" {word}" for word in words())], trainer)
    state = json.loads(learned.to_str())["model"]
    special = ["<|im_start|>", "<|im_end|>"]
    return Qwen2Tokenizer(
        vocab=state["vocab"], merges=[tuple(merge) for merge in state["merges"]], additional_special_tokens=special
    )


def write_qwen_image_pipeline(folder: Path, *, seed: int = 0, **scheduler: Any) -> Path:
    """A `QwenImagePipeline` folder with the scheduler of Qwen-Image, but for what `scheduler` says otherwise."""
    torch.manual_seed(seed)
    tokenizer = qwen_tokenizer()
    text = {
        "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
        "vocab_size": len(tokenizer), "bos_token_id": tokenizer.eos_token_id, "eos_token_id": tokenizer.eos_token_id,
        "rope_parameters": {"rope_type": "default", "mrope_section": [2, 2, 2]},
    }  # fmt: skip
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 24}
    published = {
        "use_dynamic_shifting": True,
        "shift_terminal": 0.02,
        "base_shift": 0.5,
        "max_shift": 0.9,
        "max_image_seq_len": 8192,
    }
    transformer = QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=DOUBLE,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        axes_dims_rope=(4, 6, 6),
    )
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
    QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**{**published, **scheduler}),
        vae=vae,
        text_encoder=Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision)),
        tokenizer=tokenizer,
        transformer=transformer,
    ).save_pretrained(folder, safe_serialization=True)
    return folder
