"""Parameters and peak memory from configurations alone."""

import pytest
import torch
from msgspec.structs import replace
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from sgpipe.arms.config import Arms
from sgpipe.backbones.families.flux import Flux
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
