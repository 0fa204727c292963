"""The memory plan of each family beside FLUX.1: its own encoders, latents and condition."""

from typing import Any

import pytest
from msgspec.structs import replace

from sgpipe.backbones.families.sd3 import StableDiffusion3
from sgpipe.doctor.memory import Size, build, configs_of, family_of_configs, measure
from sgpipe.doctor.plan import plan_table, ways
from sgpipe.doctor.published import PUBLISHED
from sgpipe.params.blocks import Blocks
from tests.doctor.conftest import BACKBONE, LORA, TINY, TRAIN
from tests.tiny import write_sd3_pipeline
from tests.tiny_flux2 import write_flux2_pipeline
from tests.tiny_z_image import LAYERS, write_z_image_pipeline


def test_published_parts_of_qwen_image():
    """In bfloat16 57.7 GB, the size of its files (57,704,594,653 bytes, tokenizer and configurations among them)."""
    parts = PUBLISHED["Qwen/Qwen-Image"]
    sizes = {name: Size.of(build(config)).total for name, config in parts.items()}
    assert sizes == {"transformer": 20_430_401_088, "text_encoder": 8_292_166_656, "vae": 126_892_531}
    assert 0 < 57_704_594_653 - 2 * sum(sizes.values()) < 6e6


def qwen(vocabulary: int = 99, layers: int = 2) -> dict[str, dict]:
    """Its published configurations with few and narrow layers; `vocabulary` and `layers` are those of the language model."""
    parts = PUBLISHED["Qwen/Qwen-Image"]
    narrow = {"num_layers": 3, "num_attention_heads": 4, "joint_attention_dim": 32, "in_channels": 16, "out_channels": 4}
    narrow |= {"attention_head_dim": 16, "axes_dims_rope": [4, 6, 6]}
    text = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "vocab_size": vocabulary,
    }
    text |= {"num_key_value_heads": 1, "rope_scaling": {"rope_type": "default", "mrope_section": [2, 3, 3]}}
    vision = {**parts["text_encoder"]["vision_config"], "depth": 1, "hidden_size": 16, "num_heads": 2, "out_hidden_size": 32}
    vae = {"base_dim": 8, "z_dim": 4, "dim_mult": [1, 2], "temperal_downsample": [False], "latents_mean": [0.0] * 4}
    return {
        "transformer": {**parts["transformer"], **narrow},
        "text_encoder": {**parts["text_encoder"], **text, "vision_config": vision},
        "vae": {**parts["vae"], **vae, "latents_std": [1.0] * 4},
    }


def test_qwen_image_is_planned():
    """Through its family: a VAE of videos, no pooled vector, and a language model whose logits and layers' states take memory."""

    def needed(length=8, **text):
        configs = qwen(**text)
        layout = family_of_configs(configs).layout(configs["transformer"], configs["vae"])
        return measure(configs, layout, replace(BACKBONE, single_blocks=0, max_sequence_length=length), LORA, TRAIN)

    found = needed()
    assert found.lora == 2 * 4 * 4 * (64 + 64)
    assert needed(length=64).train > found.train
    assert found.train > found.train_checkpointed > found.forward > 0
    assert found.sizes.keys() == {"transformer", "text_encoder", "vae"}
    assert all(value > 0 for phase in ways(found).values() for value in phase.values())
    assert needed(vocabulary=9999).encode_prompts > found.encode_prompts
    assert needed(layers=4).encode_prompts >= found.encode_prompts + 2 * 8 * 8 * 32 * 4


def krea2(**text: int) -> dict[str, dict]:
    """Its published configurations with few and narrow layers; `text` is said of the language model."""
    parts = PUBLISHED["krea/Krea-2-Raw"]
    narrow = {"num_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "attention_head_dim": 16, "in_channels": 16}
    narrow |= {"intermediate_size": 64, "text_hidden_dim": 16, "text_num_attention_heads": 2, "text_num_key_value_heads": 2}
    narrow |= {"text_intermediate_size": 32, "axes_dims_rope": [4, 6, 6]}
    encoder = parts["text_encoder"]
    width = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 99}
    rope = {**encoder["text_config"]["rope_parameters"], "mrope_section": [2, 1, 1]}
    width |= {"num_key_value_heads": 1, "head_dim": 8, "rope_parameters": rope}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}
    vision |= {"deepstack_visual_indexes": [0], "num_position_embeddings": 16}
    vae = {"base_dim": 8, "z_dim": 4, "dim_mult": [1, 2], "temperal_downsample": [False], "latents_mean": [0.0] * 4}
    return {
        "transformer": {**parts["transformer"], **narrow},
        "text_encoder": {
            **encoder,
            "text_config": {**encoder["text_config"], **width, **text},
            "vision_config": {**encoder["vision_config"], **vision},
        },
        "vae": {**parts["vae"], **vae, "latents_std": [1.0] * 4},
    }


def test_krea2_is_planned():
    """Single-stream blocks alone, and a language model without its head, all of whose layers' states are kept."""

    def needed(targets=("to_q", "to_k"), **text):
        configs = krea2(**text)
        layout = family_of_configs(configs).layout(configs["transformer"], configs["vae"])
        backbone = replace(BACKBONE, double_blocks=0, single_blocks=3)
        lora = replace(LORA, blocks=Blocks(()), single_blocks=Blocks.parse("1..2"), targets=targets)
        return measure(configs, layout, backbone, lora, TRAIN)

    found = needed()
    assert found.lora == 2 * 4 * ((64 + 64) + (64 + 32)) and needed(("to_q", "to_k", "to_gate")).lora == found.lora + 2 * 4 * 128
    assert found.train > found.train_checkpointed > found.forward > 0
    assert found.sizes.keys() == {"transformer", "text_encoder", "vae"}
    assert all(value > 0 for phase in ways(found).values() for value in phase.values())
    assert needed(num_hidden_layers=4).encode_prompts >= found.encode_prompts + 2 * 8 * 8 * 16 * 4


def test_published_parts_of_krea2():
    """12.8 B and Qwen3-VL-4B's 4.4 B, from the classes' defaults and not from the hub."""
    sizes = {name: Size.of(build(config)).total for name, config in PUBLISHED["krea/Krea-2-Raw"].items()}
    assert sizes == {"transformer": 12_820_073_036, "text_encoder": 4_437_815_808, "vae": 126_892_531}


def small(name: str, **text: int) -> dict[str, Any]:
    """The published configurations of a FLUX.2 with few and narrow layers; `text` is said of the chat model."""
    parts = PUBLISHED[f"black-forest-labs/FLUX.2-{name}"]
    width = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 99, **text}
    sizes = {"num_layers": 3, "num_single_layers": 1, "num_attention_heads": 1, "joint_attention_dim": 96}
    encoder = parts["text_encoder"]
    nested = {"text_config": {**encoder["text_config"], **width}} if "text_config" in encoder else width
    vae = {**parts["vae"], "block_out_channels": [32, 32], "down_block_types": ["DownEncoderBlock2D"] * 2}
    vae |= {"up_block_types": ["UpDecoderBlock2D"] * 2}
    return {"transformer": {**parts["transformer"], **sizes}, "text_encoder": {**encoder, **nested}, "vae": vae}


@pytest.mark.parametrize("name", ["dev", "klein-4B"])
def test_a_flux2_is_planned(name):
    """The dry run goes through its family, and its chat model without the head: logits of a larger vocabulary take nothing."""

    def needed(**text):
        configs = small(name, **text)
        layout = family_of_configs(configs).layout(configs["transformer"], configs["vae"])
        lora = replace(LORA, single_blocks=Blocks.parse("0"), targets=("to_q", "to_qkv_mlp_proj"))
        return measure(configs, layout, BACKBONE, lora, TRAIN)

    found = needed()
    assert found.lora == 4 * (2 * (128 + 128) + (128 + 9 * 128))
    assert found.train > found.train_checkpointed > found.forward > 0
    assert set(found.sizes) == {"transformer", "text_encoder", "vae"}
    assert {phase for phase, each in ways(found).items() if not all(each.values())} == set()
    assert needed(vocab_size=50_000).encode_prompts == found.encode_prompts > 0
    assert needed(num_hidden_layers=3).encode_prompts > found.encode_prompts, "states of every layer are kept"


def test_published_parts_of_flux2():
    """Of dev 32 B and 24 B; of klein 4 B each, which with the autoencoder are the 15.97 GB of its files in bfloat16."""
    sizes = {
        name: [Size.of(build(config)).total for config in PUBLISHED[f"black-forest-labs/FLUX.2-{name}"].values()]
        for name in ("dev", "klein-4B")
    }
    assert sizes == {"dev": [32_223_281_152, 24_011_361_280, 84_046_115], "klein-4B": [3_875_544_576, 4_022_468_096, 84_046_115]}


def test_a_folder_of_another_planned_family(tmp_path):
    folder = write_flux2_pipeline(tmp_path / "tiny", dev=True)
    configs, layout = configs_of(str(folder), None)
    assert set(configs) == {"transformer", "text_encoder", "vae"} and layout.guidance


def test_z_image_is_planned(tmp_path):
    """Its parts have the sizes of its files (12.3, 8.05, 0.168 GB in bfloat16); a folder may have the chat model without head."""
    sizes = [
        [Size.of(build(config)).total for config in PUBLISHED[f"Tongyi-MAI/{name}"].values()]
        for name in ("Z-Image", "Z-Image-Turbo")
    ]
    assert sizes == [[6_154_908_736, 4_022_468_096, 83_819_683]] * 2
    configs, layout = configs_of(str(write_z_image_pipeline(tmp_path / "tiny")), None)
    assert (
        configs["text_encoder"]["architectures"] == ["Qwen3Model"] and configs["text_encoder"]["max_position_embeddings"] == 32768
    )

    def needed(length):
        lora = replace(LORA, blocks=Blocks(()), single_blocks=Blocks.parse("1..2"))
        backbone = replace(BACKBONE, double_blocks=0, single_blocks=LAYERS, max_sequence_length=length)
        return measure(configs, layout, backbone, lora, TRAIN)

    found, longer = needed(16), needed(100)
    assert found.lora == 2 * 4 * 4 * (32 + 32)
    assert found.train > found.train_checkpointed > found.forward > 0
    assert longer.train > found.train and longer.encode_prompts > 4 * found.encode_prompts
    assert all(value > 0 for phase in ways(found).values() for value in phase.values())


SD3 = {
    "transformer": {
        "_class_name": "SD3Transformer2DModel", "sample_size": 16, "patch_size": 2, "in_channels": 4, "out_channels": 4,
        "num_layers": 3, "attention_head_dim": 16, "num_attention_heads": 4, "joint_attention_dim": 64,
        "caption_projection_dim": 64, "pooled_projection_dim": 48, "pos_embed_max_size": 16, "dual_attention_layers": [0, 1],
        "qk_norm": "rms_norm",
    },
    **{
        name: {**TINY["text_encoder"], "architectures": ["CLIPTextModelWithProjection"], "projection_dim": 24}
        for name in ("text_encoder", "text_encoder_2")
    },
    "text_encoder_3": {**TINY["text_encoder_2"], "d_model": 64},
    "vae": TINY["vae"],
}  # fmt: skip
"""Three text encoders, latents that stay images, no scale as an input, a second attention in the first two blocks."""


def test_stable_diffusion_3_is_planned(monkeypatch):
    """Its condition has CLIP's 16 rows before the 8 of T5 and those of the graph; guidance by two forwards costs no memory."""
    seen, velocity = [], StableDiffusion3.velocity

    def watched(self, transformer, latents, t, condition, guidance):
        seen.append((tuple(latents.shape), tuple(condition.states.shape), tuple(condition.pooled.shape), guidance))
        return velocity(self, transformer, latents, t, condition, guidance)

    monkeypatch.setattr(StableDiffusion3, "velocity", watched)
    layout = family_of_configs(SD3).layout(SD3["transformer"], SD3["vae"])
    found = measure(SD3, layout, replace(BACKBONE, single_blocks=0), LORA, TRAIN)
    assert set(seen) == {((2, 4, 16, 16), (2, 16 + 8 + 16, 64), (2, 48), None)}
    assert found.sizes.keys() == {"transformer", "text_encoder", "text_encoder_2", "text_encoder_3", "vae"}
    assert found.lora == 2 * 4 * 4 * (64 + 64)
    assert found.train > found.train_checkpointed > found.forward > 0
    second = replace(LORA, targets=(*LORA.targets, "attn2.to_q"))
    assert measure(SD3, layout, replace(BACKBONE, single_blocks=0), second, TRAIN).lora == (2 * 4 + 1) * 4 * (64 + 64)
    assert plan_table(found, [16]).row_count == 4


def test_a_pipeline_of_another_family_is_planned_from_its_folder(tmp_path):
    folder = write_sd3_pipeline(tmp_path / "tiny")
    configs, layout = configs_of(str(folder), None)
    assert list(configs) == ["transformer", "text_encoder", "text_encoder_2", "text_encoder_3", "vae"]
    assert (layout.double_blocks, layout.single_blocks, layout.guidance) == (3, 0, False)
