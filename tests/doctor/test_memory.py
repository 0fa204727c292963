"""Parameters and peak memory from configurations alone."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from sgpipe.doctor import memory
from sgpipe.doctor.architecture import build, lora_parameters, lora_targets, read_configs, size_of
from sgpipe.doctor.memory import GIB, PeakMemory, measure
from sgpipe.doctor.plan import choose, gpu_room, plan_table, ways
from sgpipe.doctor.published import PUBLISHED
from sgpipe.errors import ModelError, ParamsError
from sgpipe.params.blocks import Blocks
from tests.doctor.conftest import SETUP, TINY


def test_flux_schnell_has_its_published_size_and_lora_the_predecessors():
    transformer = build(PUBLISHED["black-forest-labs/FLUX.1-schnell"]["transformer"])
    assert size_of(transformer).total == 11_891_178_560
    targets = lora_targets(transformer, range(7, 13))
    assert len(targets) == 6 * 4
    assert lora_parameters(transformer, targets, rank=16) == 2_359_296
    assert all(parameter.device.type == "meta" for parameter in transformer.parameters())


def test_published_text_encoders_and_autoencoder():
    parts = PUBLISHED["black-forest-labs/FLUX.1-dev"]
    sizes = {name: size_of(build(config)).total for name, config in parts.items() if name != "transformer"}
    assert sizes == {"text_encoder": 123_060_480, "text_encoder_2": 4_762_310_656, "vae": 83_819_683}
    assert parts["transformer"]["guidance_embeds"] is True


def test_lora_targets_are_of_double_blocks_only():
    transformer = build(TINY["transformer"])
    assert lora_targets(transformer, []) == []
    names = lora_targets(transformer, [1])
    assert names == [f"transformer_blocks.1.attn.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")]
    assert lora_parameters(transformer, names, 4) == 4 * 4 * (64 + 64)


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
    twice = measure(TINY, replace(SETUP, batch_size=4))
    assert need.lora == 2 * 4 * 4 * (64 + 64)
    assert need.train > need.train_checkpointed > need.forward > 0
    for phase in ("forward", "train", "train_checkpointed"):
        assert getattr(twice, phase) == pytest.approx(2 * getattr(need, phase), rel=0.1), phase
    assert (twice.lora, twice.sizes, twice.decode_images) == (need.lora, need.sizes, need.decode_images)
    contrast = measure(TINY, replace(SETUP, graphs=2))
    assert (contrast.train, contrast.forward) == (twice.train, need.forward)


def test_blocks_out_of_range_are_named():
    with pytest.raises(ParamsError, match=r"--blocks: block 7 is out of range; valid: 0..2"):
        measure(TINY, replace(SETUP, blocks=Blocks.parse("7")))


def test_weights_in_bytes_by_precision():
    size = size_of(build(TINY["transformer"]))
    assert size.bytes("float32") == 2 * size.bytes("bfloat16") == 4 * size.total
    assert size.bytes("int8") == size.linear + 2 * (size.total - size.linear)
    assert size.bytes("nf4") < size.bytes("int8") < size.bytes("bfloat16")


def test_plan_takes_the_first_way_that_fits_and_says_when_none_does(need):
    for phase, options in ways(need).items():
        for way in options:
            choice = next(c for c in choose(need, way.bytes) if c.phase == phase)
            assert choice.fits and choice.way.bytes <= way.bytes
        assert next(c for c in choose(need, options[0].bytes) if c.phase == phase).way == options[0]
    assert not any(choice.fits for choice in choose(need, 0))
    assert gpu_room(24) == pytest.approx((24 * 0.97 - 0.6) * GIB)
    table = plan_table(need, [16, 24])
    assert [column.header for column in table.columns] == [
        "phase",
        "16 GiB",
        "24 GiB",
    ] and table.row_count == 4


def test_broken_architectures_are_named(tmp_path):
    with pytest.raises(ModelError, match="not a whole diffusers pipeline"):
        read_configs(tmp_path)
    with pytest.raises(ModelError, match="the class 'Nonsense'"):
        build({"_class_name": "Nonsense"})
    with pytest.raises(ModelError, match="cannot be planned; valid: a pipeline whose transformer"):
        measure({**TINY, "transformer": TINY["vae"]}, SETUP)
