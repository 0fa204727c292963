"""The benchmark of all families at a quarter of the width: equality with the pipelines, checks that can fail, missed bars."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import typer.testing

from benchmarks import families
from benchmarks._families import RELEASES, Random, checked_tensors, double_alone, map_options, width_of
from benchmarks.families import measure_batch, measure_flops, measure_time, measure_velocity, missed
from sgpipe.attention_maps.config import Maps
from sgpipe.attention_maps.options import MapOptions
from sgpipe.backbones.base import TextCondition
from sgpipe.backbones.families import FAMILIES
from sgpipe.doctor.published import PUBLISHED
from sgpipe.params.blocks import LayerGroup

CPU, META, TOKENS = torch.device("cpu"), torch.device("meta"), 16
NAMES = list(RELEASES)


@pytest.fixture(scope="module")
def small() -> dict[str, Random]:
    """Each release at width 128."""
    return {
        name: Random.open(release, CPU, torch.float32, TOKENS, {**release.few, **release.narrow(128)})
        for name, release in RELEASES.items()
    }


def side(small: Random) -> int:
    """Pixels of 4 × 4 image tokens."""
    return 4 * small.layout.pixels_per_token


def test_every_family_has_a_release() -> None:
    assert {release.pipeline for release in RELEASES.values()} == set(FAMILIES)
    assert all(release.configs["transformer"]["_class_name"] == release.family.transformer for release in RELEASES.values())


@pytest.mark.parametrize("name", NAMES)
def test_velocities_are_the_pipelines_and_a_batch_is_each_alone(
    small: dict[str, Random], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And both figures are not 0 whatever the seam does: where times are off, or masks are dropped, they say so."""
    each = small[name]
    assert measure_velocity(each, side(each)) == 0
    assert 0 < measure_batch(each, side(each)) < 1e-5
    kind, plain = type(each.denoiser.family), type(each.denoiser.family).velocity

    def late(self: Any, model: Any, latents: Any, t: Any, text: TextCondition, scale: Any) -> Any:
        return plain(self, model, latents, t * 0.99, text, scale)

    def unmasked(self: Any, model: Any, latents: Any, t: Any, text: TextCondition, scale: Any) -> Any:
        return plain(self, model, latents, t, replace(text, mask=None), scale)

    with monkeypatch.context() as patched:
        patched.setattr(kind, "velocity", late)
        assert measure_velocity(each, side(each)) > 1e-4
    with monkeypatch.context() as patched:
        patched.setattr(kind, "velocity", unmasked)
        assert measure_batch(each, side(each)) > 1e-4


def test_one_velocity_that_is_no_number_is_not_hidden_by_others(small: dict[str, Random], monkeypatch: pytest.MonkeyPatch) -> None:
    each = small["SD3.5-medium"]
    kind, plain, calls = type(each.denoiser.family), type(each.denoiser.family).velocity, []

    def third_is_not(*given: Any) -> torch.Tensor:
        calls.append(1)
        return plain(*given) * (float("nan") if len(calls) == 3 else 1.0)

    monkeypatch.setattr(kind, "velocity", third_is_not)
    found = measure_batch(each, side(each))
    assert found != found
    assert missed("a", {**SOUND, "batch_max_abs": found}) == ["a: batch_max_abs is nan, the bar 1e-05"]


def test_time_is_that_of_samplings_with_maps(small: dict[str, Random]) -> None:
    """The maps of a group are made in both steps of each sampling with maps, and in no other."""
    each = small["SD3.5-medium"]
    forwards, calls = [], []
    last = each.denoiser.transformer.transformer_blocks[2]
    hooks = [
        each.denoiser.transformer.register_forward_hook(lambda *_: forwards.append(1)),
        last.attn.add_k_proj.register_forward_hook(lambda *_: calls.append(1)),
    ]
    found = measure_time(each, MapOptions({"late": "2"}), side(each), pairs=2)
    for hook in hooks:
        hook.remove()
    samplings = 2 * (1 + 2)
    assert len(forwards) == 2 * samplings and len(calls) == 2 * samplings + 2 * samplings // 2
    assert 0 < found["ratio_lowest"] <= found["ratio"] <= found["ratio_highest"]


def test_groups_of_a_few_blocks_are_those_of_all() -> None:
    real, few = (RELEASES["FLUX.1-schnell"].layout(config) for config in _configs("FLUX.1-schnell"))
    groups = {"early": "0..6", "middle": "7..12", "late": "13..18", "single": {"single_blocks": "0..18"}}
    maps = Maps({name: LayerGroup.parse(group) for name, group in groups.items()})
    options = map_options(maps, real, few)
    assert options.resolve(3, 6) == {"early": (0,), "middle": (1,), "late": (2,), "single": (3, 4, 5)}
    alone = double_alone(options)
    assert alone is not None and alone.resolve(3, 6) == {"early": (0,), "middle": (1,), "late": (2,)}
    assert double_alone(MapOptions({"single": {"single_blocks": "all"}})) is None
    with pytest.raises(ValueError, match=r"groups\.first: got \[0\], and no block of 3 \+ 6"):
        map_options(Maps({"first": LayerGroup.parse("0")}), real, few)


def _configs(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    config = PUBLISHED[RELEASES[name].model]["transformer"]
    return config, {**config, **RELEASES[name].few}


def test_flops_tell_the_streams_apart() -> None:
    release = RELEASES["FLUX.1-schnell"]
    tiny = Random.open(release, META, torch.bfloat16, TOKENS, {**release.few, **release.narrow(128)})
    groups: dict[str, Any] = {"early": "0", "late": "2"}
    double = measure_flops(tiny, MapOptions(groups), 64)
    both = measure_flops(tiny, MapOptions({**groups, "single": {"single_blocks": "all"}}), 64)
    single = measure_flops(tiny, MapOptions({"single": {"single_blocks": "all"}}), 64)
    assert double["single_flop_share"] is None and both["maps_flop_share"] == double["maps_flop_share"] > 0
    assert both["single_flop_share"] > 0
    assert single["maps_flop_share"] is None and single["single_flop_share"] > both["single_flop_share"]


@pytest.mark.parametrize("name", ["Z-Image", "Krea-2-Raw"])
def test_where_all_blocks_are_single_stream_the_share_is_theirs(name: str) -> None:
    """Of those in the groups alone: the more blocks up to the last one, the more, and nothing stands apart."""
    release = RELEASES[name]
    tiny = Random.open(release, META, torch.bfloat16, TOKENS, {**release.few, **release.narrow(128)})
    found: list[dict[str, Any]] = [
        dict(measure_flops(tiny, MapOptions({"a": {"single_blocks": blocks}}), 64)) for blocks in ("0..1", "4..5")
    ]
    early, late = found
    assert late["maps_flop_share"] > early["maps_flop_share"] > 0
    assert late["single_flop_share"] is None and early["single_flop_share"] is None


@pytest.mark.parametrize("name", ["Z-Image", "Krea-2-Raw"])
@pytest.mark.parametrize("width", [128, 512, 1024])
def test_a_narrow_transformer_is_as_wide_as_it_says(name: str, width: int) -> None:
    release = RELEASES[name]
    config = {**release.configs["transformer"], **release.few, **release.narrow(width)}
    made = Random.open(release, META, torch.float32, TOKENS, config)
    transformer: Any = made.denoiser.transformer
    block = transformer.get_submodule(made.layout.single_block.format(index=5))
    assert width_of(transformer.config) == width
    assert block.get_submodule(made.layout.single_projections["to_q"]).weight.shape == (width, width)
    assert (made.layout.double_blocks, made.layout.single_blocks) == (0, 6)


@pytest.mark.parametrize(("name", "checked"), [("Z-Image", 30 * 4), ("Krea-2-Raw", 28 * 5)])
def test_tensors_of_single_stream_blocks_are_compared(name: str, checked: int) -> None:
    """Z-Image's are square, Krea 2's of keys and values a quarter of the width."""
    release = RELEASES[name]
    assert checked_tensors(release)[0] == checked
    part = next(iter(release.layout(release.configs["transformer"]).single_projections.values()))
    with pytest.raises(ValueError, match=rf"{part}: \[(\d+), \1\], not \(\d+, \d+\)"):
        checked_tensors(replace(release, shapes={part: (1, 3)}))


@pytest.mark.parametrize(("name", "checked"), [("FLUX.2-klein-4B", 5 * 8 + 20 * 2), ("SD3.5-medium", 24 * 8 - 1 + 13 * 4)])
def test_tensors_are_compared_with_what_the_layout_predicts(name: str, checked: int, monkeypatch: pytest.MonkeyPatch) -> None:
    release = RELEASES[name]
    assert checked_tensors(release)[0] == checked
    layout = release.layout(release.configs["transformer"])
    for change, says in (
        ({"lacking": frozenset({"transformer_blocks.2.attn.to_q"})}, r"transformer_blocks\.2\.attn\.to_q: \[\d+, \d+\], not none"),
        ({"text_projections": ("attn.add_out_proj",)}, "add_out_proj: none, not"),
        ({"image_projections": ("ff.net.2",)} if name[0] == "S" else {"single_projections": {"b": "attn.norm_q"}}, "not"),
    ):
        wrong = type(layout)(**{**vars(layout), **change})
        with monkeypatch.context() as patched:
            patched.setattr(type(release), "layout", lambda *_, wrong=wrong: wrong)
            with pytest.raises(ValueError, match=rf"are not those of its layout: .*{says}"):
                checked_tensors(release)


SOUND = {"velocity_max_abs": 0.0, "batch_max_abs": 9e-6, "maps_time_ratio": 1.07, "maps_flop_share": 0.0029}


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({}, None),
        ({"maps_flop_share": None}, None),
        ({"velocity_max_abs": 1e-9}, "velocity_max_abs is 1e-09, the bar 0"),
        ({"batch_max_abs": 2e-5}, "batch_max_abs is 2e-05, the bar 1e-05"),
        ({"maps_time_ratio": 1.09}, "maps_time_ratio is 1.09, the bar 1.08"),
        ({"maps_flop_share": 0.0031}, "maps_flop_share is 0.0031, the bar 0.003"),
    ],
)
def test_a_missed_bar_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], line: str | None) -> None:
    row = {**SOUND, "single_flop_share": None, "lora_parameters": 1, "tensors_checked": 1, "tensors": 2, **change}
    monkeypatch.setattr(families, "measure_family", lambda *_: row)
    app = typer.Typer()
    app.command()(families.main)
    out = tmp_path / "metrics.json"
    runner = typer.testing.CliRunner()
    found = runner.invoke(app, ["--check", "--family=Qwen-Image", f"--out={out}"])
    assert found.exit_code == (line is not None) and (line is None or f"error: Qwen-Image: {line}" in found.output)
    assert list(json.loads(out.read_text())) == ["Qwen-Image"]
    assert missed("a", row) == ([] if line is None else [f"a: {line}"])
    assert runner.invoke(app, ["--family=none", f"--out={out}"]).exit_code == 2


@pytest.mark.slow
def test_a_family_is_measured_whole(repo_root: Path) -> None:
    """The only test at the real size: FLUX.2-klein's preset, LoRA on its five double-stream blocks."""
    found = families.measure_family(RELEASES["FLUX.2-klein-4B"], repo_root / "params.yaml", 128, 4, TOKENS, pairs=1)
    assert found["lora_parameters"] == 5 * 4 * 16 * (3072 + 3072) == 1_966_080
    assert 0 < found["maps_flop_share"] < 0.003 and found["real"]["resolution"] == 256
    assert (found["small"]["double_blocks"], found["small"]["single_blocks"]) == (3, 6)
