"""A tiny FLUX pipeline folder and a repository round it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from sgpipe.arms.config import Lora
from sgpipe.backbones.config import Backbone
from sgpipe.backbones.families.flux import Flux
from sgpipe.doctor.memory import Need, build, measure
from sgpipe.params.blocks import Blocks
from sgpipe.training.config import Losses, Margin, Train
from sgworld.language import clip_tokenizer, t5_tokenizer

TINY: dict[str, dict[str, Any]] = {
    "transformer": {
        "_class_name": "FluxTransformer2DModel",
        "patch_size": 1,
        "in_channels": 16,
        "num_layers": 3,
        "num_single_layers": 1,
        "attention_head_dim": 16,
        "num_attention_heads": 4,
        "joint_attention_dim": 32,
        "pooled_projection_dim": 24,
        "guidance_embeds": True,
        "axes_dims_rope": [4, 6, 6],
    },
    "text_encoder": {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "hidden_size": 24,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 99,
        "max_position_embeddings": 16,
    },
    "text_encoder_2": {
        "architectures": ["T5EncoderModel"],
        "model_type": "t5",
        "vocab_size": 99,
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 64,
        "num_layers": 1,
        "num_heads": 4,
    },
    "vae": {
        "_class_name": "AutoencoderKL",
        "block_out_channels": [8, 16],
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
        "latent_channels": 4,
        "layers_per_block": 1,
        "norm_num_groups": 4,
    },
}


def write_pipeline(folder: Path) -> Path:
    """A pipeline folder in diffusers' layout with weights of the right names and shapes, all zero."""
    from safetensors.torch import save_file

    index: dict[str, Any] = {"_class_name": "FluxPipeline", "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"]}
    (folder / "scheduler").mkdir(parents=True)
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps({"_class_name": "FlowMatchEulerDiscreteScheduler"}))
    for part, tokenizer in (("tokenizer", clip_tokenizer(["a dog"])), ("tokenizer_2", t5_tokenizer())):
        tokenizer.save_pretrained(folder / part)
        index[part] = ["transformers", type(tokenizer).__name__]
    for part, config in TINY.items():
        (folder / part).mkdir()
        (folder / part / "config.json").write_text(json.dumps(config))
        state = {name: torch.zeros(t.shape) for name, t in build(config).state_dict().items()}
        library, file = (
            ("diffusers", "diffusion_pytorch_model.safetensors")
            if "_class_name" in config
            else ("transformers", "model.safetensors")
        )
        save_file(state, folder / part / file)
        index[part] = [library, config.get("_class_name") or config["architectures"][0]]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny pipeline, once for all tests."""
    return write_pipeline(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def pipeline(written: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may damage."""
    return Path(shutil.copytree(written, tmp_path / "models" / "tiny"))


LAYOUT = Flux().layout(TINY["transformer"], TINY["vae"])
BACKBONE = Backbone("tiny", 3, 1, resolution=32, max_sequence_length=8)
LORA = Lora(Blocks.parse("1..2"), rank=4)
TRAIN = Train(batch_size=2, losses=Losses(margin=Margin(weight=0.0)))


@pytest.fixture(scope="session")
def need() -> Need:
    """The dry run of the tiny pipeline, once for all tests."""
    return measure(TINY, LAYOUT, BACKBONE, LORA, TRAIN)
