"""Parameters and peak memory from configurations alone."""

from typing import Any

import pytest
import torch
from msgspec.structs import replace
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from sgpipe.arms.config import Arms
from sgpipe.backbones.families.flux import Flux
from sgpipe.backbones.families.sd3 import StableDiffusion3
from sgpipe.doctor import memory
from sgpipe.doctor.memory import GIB, PeakMemory, Size, build, configs_of, family_of_configs, measure, planned_lora
from sgpipe.doctor.plan import choose, gpu_room, plan_table, ways
from sgpipe.doctor.published import PUBLISHED
from sgpipe.errors import ModelError, ParamsError
from sgpipe.params.blocks import Blocks
from sgpipe.params.show import load_all
from sgpipe.presets import with_preset
from sgpipe.training.config import Losses, Margin
from tests.doctor.conftest import BACKBONE, LAYOUT, LORA, TINY, TRAIN
from tests.tiny import write_flux2_pipeline, write_sd3_pipeline
from tests.tiny_z_image import LAYERS, write_z_image_pipeline


def test_flux_schnell_has_its_published_size_and_lora_the_predecessors(repo_root):
    """The preset's LoRA on the whole transformer; the other parts are tiny, and few image tokens do."""
    sections = with_preset(repo_root / "params.yaml", repo_root / "presets" / "flux-schnell-vg.yaml")
    published = PUBLISHED[sections["backbone"].model]
    configs = {**TINY, "transformer": published["transformer"]}
    configs["vae"] = {**TINY["vae"], "latent_channels": 16}
    layout = Flux().layout(configs["transformer"], configs["vae"])
    lora = planned_lora(sections, layout)
    need = measure(configs, layout, replace(BACKBONE, resolution=16), lora, sections["train"])
    assert (need.sizes["transformer"].total, need.lora) == (11_891_178_560, 2_359_296)
    assert (lora.blocks, lora.rank, sections["train"].batch_size) == (Blocks.parse("7..12"), 16, 2)


WIDE = {**PUBLISHED["black-forest-labs/FLUX.1-dev"]["transformer"], "num_layers": 3, "num_single_layers": 2}


@pytest.mark.parametrize(
    ("blocks", "single_blocks", "targets", "pattern"),
    [
        ("1..2", "none", LORA.targets, r"transformer_blocks\.[12]\.attn\.(to_q|to_k|to_v|to_out\.0)"),
        ("[0,2]", "none", ("to_q", "add_k_proj", "to_add_out"), r"transformer_blocks\.[02]\.attn\.(to_q|add_k_proj|to_add_out)"),
        ("none", "all", ("to_q", "proj_out"), r"single_transformer_blocks\.\d\.(attn\.to_q|proj_out)"),
        ("0", "1", ("to_v", "to_out.0", "proj_out"),
         r"transformer_blocks\.0\.attn\.(to_v|to_out\.0)|single_transformer_blocks\.1\.(attn\.to_v|proj_out)"),
        ("none", "none", LORA.targets, None),
    ],
)  # fmt: skip
def test_planned_lora_is_that_of_peft(blocks, single_blocks, targets, pattern):
    """FLUX.1's widths with few blocks; peft gets a regular expression of its own for the modules."""
    configs = {**TINY, "transformer": WIDE, "vae": {**TINY["vae"], "latent_channels": 16}}
    layout = Flux().layout(configs["transformer"], configs["vae"])
    lora = replace(LORA, blocks=Blocks.parse(blocks), single_blocks=Blocks.parse(single_blocks), targets=targets)
    transformer, expected = build(WIDE), 0
    if pattern is not None:
        adapter = LoraConfig(r=lora.rank, target_modules=pattern)
        names = inject_adapter_in_model(adapter, transformer).named_parameters()
        expected = sum(weight.numel() for name, weight in names if ".lora_" in name)
        assert expected > 0
    assert measure(configs, layout, replace(BACKBONE, resolution=16), lora, TRAIN).lora == expected


ALONE = {"kind": "graph_tokens"}


def test_the_planned_arm_is_the_one_with_most_lora(repo_root):
    """Arms are resolved on the planned model's blocks, not on those of params.yaml."""
    sections = load_all(repo_root / "params.yaml")

    def planned(arms, **changes):
        chosen = Arms.decode("arms", arms, "tests")
        changed = {"lora": replace(sections["lora"], **changes), "arms": chosen}
        return planned_lora({**sections, **changed}, LAYOUT)

    all_blocks = {"blocks": Blocks.parse("all"), "single_blocks": Blocks.parse("all"), "targets": (*LORA.targets, "proj_out")}
    lora = planned({"alone": ALONE, "graph": {"kind": "graph_lora"}}, **all_blocks)
    assert (lora.blocks, lora.single_blocks) == (Blocks((0, 1, 2)), Blocks((0,)))
    assert planned({"alone": ALONE}, **all_blocks).blocks == Blocks(())
    random = planned({"alone": ALONE, "other": {"kind": "graph_lora", "blocks": "random"}}, blocks=Blocks.parse("0..1")).blocks
    assert len(random.indices) == 2 and random != Blocks((0, 1))
    with pytest.raises(ParamsError, match=r"lora\.targets: proj_out: none of lora\.blocks \[0\] has it"):
        planned({"graph": {"kind": "graph_lora"}}, blocks=Blocks.parse("0"), targets=("proj_out",))


@pytest.mark.parametrize(
    ("model", "encoders"),
    [
        ("black-forest-labs/FLUX.1-dev", {"text_encoder": 123_060_480, "text_encoder_2": 4_762_310_656}),
        (
            "stabilityai/stable-diffusion-3.5-medium",
            {"text_encoder": 123_650_304, "text_encoder_2": 694_659_840, "text_encoder_3": 4_762_310_656},
        ),
    ],
)
def test_published_text_encoders_and_autoencoder(model, encoders):
    """CLIPs with a projection have width × projected width more."""
    parts = PUBLISHED[model]
    sizes = {name: Size.of(build(config)).total for name, config in parts.items() if name != "transformer"}
    assert sizes == {**encoders, "vae": 83_819_683}
    assert PUBLISHED["black-forest-labs/FLUX.1-dev"]["transformer"]["guidance_embeds"] is True


def test_peak_counts_storages_once_and_forgets_the_dead():
    layer = nn.Linear(8, 8, bias=False, device="meta")
    with PeakMemory(layer) as peak, torch.no_grad():
        x = torch.empty(4, 8, device="meta")
        y = layer(x)
        view = y.t()
        assert peak.live == peak.peak == 2 * 4 * 8 * 4
        del x, y, view
        assert peak.live == 0
        torch.empty(4, device="meta")
    assert (peak.live, peak.peak) == (0, 256)


def test_peak_on_meta_is_that_of_the_same_model_on_the_cpu():
    def run(device: str) -> int:
        torch.manual_seed(0)
        layers = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.LayerNorm(64), nn.Linear(64, 16)).to(device)
        with PeakMemory(layers) as peak:
            x = torch.ones(32, 16, device=device, requires_grad=True)
            layers(x).square().mean().backward()
        return peak.peak

    assert run("meta") == run("cpu")


def test_attention_stores_no_scores_and_the_override_ends():
    q = torch.empty(1, 2, 512, 8, device="meta", requires_grad=True)

    def scores(fused: bool) -> int:
        def run() -> None:
            nn.functional.scaled_dot_product_attention(q, q, q).sum().backward()

        if fused:
            return memory._peak((), run)
        with PeakMemory() as peak:
            run()
        return peak.peak

    before, fused, after = scores(False), scores(True), scores(False)
    assert before == after > 2 * 512 * 512 * 4 > fused


def test_dry_run_of_every_phase(need):
    twice = measure(TINY, LAYOUT, BACKBONE, LORA, replace(TRAIN, batch_size=4))
    assert need.lora == 2 * 4 * 4 * (64 + 64)
    assert need.train > need.train_checkpointed > need.forward > 0
    for phase in ("forward", "train", "train_checkpointed"):
        assert getattr(twice, phase) == pytest.approx(2 * getattr(need, phase), rel=0.1), phase
    assert (twice.lora, twice.sizes, twice.decode_images) == (need.lora, need.sizes, need.decode_images)
    contrasting = replace(TRAIN, losses=Losses(margin=Margin(weight=1.0)))
    contrast = measure(TINY, LAYOUT, BACKBONE, LORA, contrasting)
    assert (contrast.train, contrast.forward) == (twice.train, need.forward)


def test_blocks_out_of_range_are_named():
    with pytest.raises(ParamsError, match=r"lora.blocks: block 7 is out of range; valid: 0..2"):
        measure(TINY, LAYOUT, BACKBONE, replace(LORA, blocks=Blocks.parse("7")), TRAIN)


def test_weights_in_bytes_by_precision():
    size = Size.of(build(TINY["transformer"]))
    assert size.bytes("float32") == 2 * size.bytes("bfloat16") == 4 * size.total
    assert size.bytes("int8") == size.linear + 2 * (size.total - size.linear)
    assert size.bytes("nf4") < size.bytes("int8") < size.bytes("bfloat16")


def test_plan_takes_the_first_way_that_fits_and_says_when_none_does(need):
    for phase, options in ways(need).items():
        for size in options.values():
            choice = next(c for c in choose(need, size) if c.phase == phase)
            assert choice.fits and choice.bytes == options[choice.how] <= size
        first, size = next(iter(options.items()))
        assert next(c for c in choose(need, size) if c.phase == phase).how == first
    assert not any(choice.fits for choice in choose(need, 0))
    assert [choice.bytes for choice in choose(need, 0)] == [min(each.values()) for each in ways(need).values()]
    assert gpu_room(24) == pytest.approx((24 * 0.97 - 0.6) * GIB)
    table = plan_table(need, [16, 24])
    assert [column.header for column in table.columns] == ["phase", "16 GiB", "24 GiB"] and table.row_count == 4


def test_broken_architectures_are_named(tmp_path):
    with pytest.raises(ModelError, match="not a whole diffusers pipeline"):
        configs_of(str(tmp_path), None)
    with pytest.raises(ModelError, match="the class 'Nonsense'"):
        build({"_class_name": "Nonsense"})
    with pytest.raises(ModelError, match=r"known: Qwen/Qwen-Image, .*black-forest-labs/FLUX\.1-dev, "):
        configs_of("nobody/nothing", None)
    with pytest.raises(ModelError, match=r"'UNet2DConditionModel' is no transformer of a known family; valid: Flux"):
        family_of_configs({"transformer": {"_class_name": "UNet2DConditionModel"}})


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
