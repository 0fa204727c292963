"""Presets: each is a valid configuration, applying one writes exactly its difference, and nothing else of the file is lost."""

import re
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sgpipe.arms.adapter import check_guidance
from sgpipe.arms.lora import target_modules
from sgpipe.backbones.families.flux2 import Flux2Klein
from sgpipe.backbones.families.krea2 import Krea2
from sgpipe.backbones.families.sd3 import StableDiffusion3
from sgpipe.backbones.families.z_image import ZImage
from sgpipe.backbones.source import check_source
from sgpipe.cli import app
from sgpipe.doctor.published import PUBLISHED
from sgpipe.errors import ParamsError
from sgpipe.params.load import read_yaml
from sgpipe.params.show import load_all, resolved
from sgpipe.presets import apply, available, changes, preset_path, shown, with_preset

PRESETS = (
    "flux-dev-vg", "flux-schnell-vg", "flux2-klein-vg", "krea2-vg", "predecessor-miniature", "qwen-image-vg", "sd3.5-large-vg",
    "sd3.5-medium-vg", "z-image-vg",
)  # fmt: skip


@pytest.fixture
def root(repo_root: Path, tmp_path: Path) -> Path:
    """A folder with the committed parameters and presets."""
    shutil.copy(repo_root / "params.yaml", tmp_path)
    shutil.copytree(repo_root / "presets", tmp_path / "presets")
    return tmp_path


def comments(text: str) -> list[str]:
    return re.findall(r"#.*", text)


def test_every_preset_says_what_it_is(root: Path) -> None:
    found = available(root / "presets")
    assert tuple(found) == PRESETS and all(found.values())
    done = CliRunner().invoke(app, ["preset", "--params", str(root / "params.yaml")], catch_exceptions=False)
    assert [line.partition(":")[0] for line in done.output.splitlines()] == list(PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_applied_it_is_a_valid_configuration_and_leaves_nothing_to_change(
    root: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    params, preset = root / "params.yaml", preset_path(root / "presets", name)
    text, before = params.read_text(encoding="utf-8"), resolved(params)
    made = apply(params, preset)
    after = resolved(params)
    assert made and changes(params, preset) == [] and apply(params, preset) == []
    monkeypatch.chdir(root)
    backbone = load_all(params)["backbone"]
    if backbone.model.startswith("models/"):  # an embedded checkpoint, which tests of the pipeline read
        Path(backbone.model).mkdir(parents=True)
    check_source(backbone)
    assert comments(params.read_text(encoding="utf-8")) == comments(text)
    assert list(read_yaml(params)) == list(before)
    touched = {change.knob for change in made}
    for section, knobs in before.items():
        for knob, value in knobs.items():
            whole = (section, knob) == ("localise", "blocks")  # `all`, of each model its own
            if not whole and not any(f"{each}.".startswith(f"{section}.{knob}.") for each in touched):
                assert after[section][knob] == value, f"{section}.{knob}"
    lines = text.splitlines()
    new = [line for line in params.read_text(encoding="utf-8").splitlines() if line not in lines]
    assert len(new) <= len(made) + 8 and max(map(len, new)) <= 132
    assert not list(root.glob(".*.tmp"))


def test_the_predecessors_set_up(root: Path) -> None:
    """Facts of the predecessor's experiment (seed document), as far as they are knobs."""
    params = root / "params.yaml"
    apply(params, preset_path(root / "presets", "flux-schnell-vg"))
    found = load_all(params)
    lora, train, curate, backbone = (found[name] for name in ("lora", "train", "curate", "backbone"))
    assert train.epochs * curate.train // (train.batch_size * train.gradient_accumulation_steps) == 8000
    assert (curate.train, curate.val, len(curate.predicates)) == (800, 160, 16)
    assert (backbone.resolution, backbone.dtype, train.precision) == (256, "bfloat16", "bfloat16")
    assert (lora.blocks.indices, lora.rank, lora.alpha) == ((7, 8, 9, 10, 11, 12), 16, 16)
    assert (train.times.density, train.times.low, train.times.high) == ("uniform", 0.5, 1)
    assert (train.optimiser.learning_rate, train.optimiser.weight_decay, train.optimiser.clip) == (1e-4, 1e-2, 1)
    assert train.losses.flow == 1 and not train.losses.contrastive and not train.losses.maps
    assert train.conditions.shares() == {"relational": 1}
    assert not set(found["judge"].judges) & {"exact"}


def test_flux2_klein_has_the_same_recipe(root: Path) -> None:
    """Beside the model's own shape it differs from schnell's in text length, groups of maps and LoRA's blocks alone."""
    params = root / "params.yaml"
    preset, other = (with_preset(params, preset_path(root / "presets", f"{name}-vg")) for name in ("flux2-klein", "flux-schnell"))
    assert {name for name, section in preset.items() if section != other[name]} == {"backbone", "cache_prompts", "maps", "lora"}
    backbone, parts = preset["backbone"], PUBLISHED[preset["backbone"].model]
    layout = Flux2Klein().layout(parts["transformer"], parts["vae"])
    assert (backbone.double_blocks, backbone.single_blocks) == (layout.double_blocks, layout.single_blocks) == (5, 20)
    assert len(target_modules(layout, preset["lora"])) == 4 * 5 and layout.grid(backbone.resolution) == 16
    assert set(preset["maps"].groups) == set(other["maps"].groups)


@pytest.mark.parametrize("name", [name for name in PRESETS if name.startswith("sd3.5")])
def test_stable_diffusion_is_guided_in_sampling_alone(root: Path, name: str) -> None:
    """And blocks are those of the published configuration, its groups thirds of them; LoRA sits on the middle one."""
    params = root / "params.yaml"
    apply(params, preset_path(root / "presets", name))
    found = load_all(params)
    parts = PUBLISHED[found["backbone"].model]
    layout = StableDiffusion3().layout(parts["transformer"], parts["vae"])
    assert (found["backbone"].double_blocks, found["backbone"].single_blocks) == (layout.double_blocks, 0)
    assert layout.grid(found["backbone"].resolution) == 32 and found["backbone"].max_sequence_length == 256
    check_guidance(layout, found["train"])
    assert layout.classifier_free(found["evaluate"].guidance) == found["saliency"].guidance > 1
    assert found["saliency_noised"].guidance is None
    assert found["evaluate"].steps == found["saliency"].steps == found["train"].validation.steps == 28
    groups = [group.blocks.indices for group in found["maps"].groups.values()]
    assert sum(groups, ()) == tuple(range(layout.double_blocks)) and max(map(len, groups)) - min(map(len, groups)) <= 1
    assert found["lora"].blocks.indices == groups[1]
    assert len(target_modules(layout, found["lora"])) == 4 * len(groups[1])
    assert found["train"].epochs * found["curate"].train // found["train"].batch_size == 8000


def test_z_image_differs_from_qwen_image_in_its_shape_and_guidance_alone(root: Path) -> None:
    """LoRA sits on the middle third of its shared layers; 5 is the pipeline's `guidance_scale` 4."""
    params = root / "params.yaml"
    found, other = (with_preset(params, preset_path(root / "presets", f"{name}-vg")) for name in ("z-image", "qwen-image"))
    differ = {name for name, section in found.items() if section != other[name]}
    assert differ == {"backbone", "maps", "lora", "saliency", "evaluate", "localise"}
    backbone, parts = found["backbone"], PUBLISHED[found["backbone"].model]
    layout = ZImage().layout(parts["transformer"], parts["vae"])
    assert (backbone.double_blocks, backbone.single_blocks) == (layout.double_blocks, layout.single_blocks) == (0, 30)
    check_guidance(layout, found["train"])
    assert layout.classifier_free(found["evaluate"].guidance) == found["saliency"].guidance == 5
    groups = [group.resolve(0, 30, name) for name, group in found["maps"].groups.items()]
    assert groups == [tuple(range(start, start + 10)) for start in (0, 10, 20)]
    assert found["lora"].single_blocks.indices == groups[1] and len(target_modules(layout, found["lora"])) == 4 * 10


def test_krea2_has_single_stream_blocks_alone(root: Path) -> None:
    """Those of the published configuration, its groups thirds of them, LoRA on the middle one; guided in sampling alone."""
    found = with_preset(root / "params.yaml", preset_path(root / "presets", "krea2-vg"))
    parts = PUBLISHED[found["backbone"].model]
    layout = Krea2().layout(parts["transformer"], parts["vae"])
    assert (found["backbone"].double_blocks, found["backbone"].single_blocks) == (0, layout.single_blocks)
    groups = [group.single_blocks.indices for group in found["maps"].groups.values()]
    assert sum(groups, ()) == tuple(range(layout.single_blocks)) and max(map(len, groups)) - min(map(len, groups)) <= 1
    assert not any(group.blocks.indices for group in found["maps"].groups.values())
    assert found["lora"].single_blocks.indices == groups[1] and len(target_modules(layout, found["lora"])) == 4 * len(groups[1])
    check_guidance(layout, found["train"])
    assert layout.classifier_free(found["evaluate"].guidance) == found["saliency"].guidance == 5.5
    assert layout.grid(found["backbone"].resolution) == 32
    assert found["train"].epochs * found["curate"].train // found["train"].batch_size == 8000


def test_settings_of_the_user_stay(root: Path) -> None:
    """Blocks spelled in another way are no change; a knob that no preset names keeps its value."""
    params = root / "params.yaml"
    text = params.read_text(encoding="utf-8")
    text = text.replace("blocks: 7..12", "blocks: [7, 8, 9..12]").replace("experiment: sgpipe", "experiment: mine")
    params.write_text(text, encoding="utf-8")
    made = apply(params, preset_path(root / "presets", "flux-dev-vg"))
    assert "lora.blocks" not in {change.knob for change in made}
    assert "blocks: [7, 8, 9..12]" in params.read_text(encoding="utf-8")
    assert load_all(params)["tracking"].experiment == "mine"


def test_the_arms_of_a_preset_are_all_that_is_trained(root: Path) -> None:
    """As other mappings with free names they replace those of params.yaml."""
    params, preset = root / "params.yaml", root / "presets" / "placements.yaml"
    arms = "arms:\n  graph: {kind: graph_lora, blocks: 0..6}\n  alone: {kind: graph_tokens}\n"
    preset.write_text(f"{arms}evaluate: {{adapters: {{graph: graphs, alone: graphs}}}}\n", encoding="utf-8")
    assert [change.knob for change in apply(params, preset)] == ["arms", "evaluate.adapters"]
    assert {name: arm.kind for name, arm in load_all(params)["arms"].items()} == {"graph": "graph_lora", "alone": "graph_tokens"}
    assert changes(params, preset) == []


def test_the_difference_is_printed_and_nothing_written(root: Path) -> None:
    params = root / "params.yaml"
    text = params.read_text(encoding="utf-8")
    call = ["preset", "predecessor-miniature", "--params", str(params)]
    done = CliRunner().invoke(app, call, catch_exceptions=False)
    assert re.search(r"train\.times\.low\s+│ 0\.7\s+│ 0\.5", done.output)
    assert params.read_text(encoding="utf-8") == text
    assert "written to" in CliRunner().invoke(app, [*call, "--apply"], catch_exceptions=False).output
    assert load_all(params)["train"].times.low == 0.5


def test_as_settings_a_preset_is_a_part_of_a_command(root: Path) -> None:
    params = root / "params.yaml"
    done = CliRunner().invoke(app, ["preset", "predecessor-miniature", "--params", str(params), "--settings"])
    made = changes(params, preset_path(root / "presets", "predecessor-miniature"))
    words = done.output.split()
    assert words[::2] == ["-S"] * len(made) and "train.active_timesteps=always" in words and "train.ema_decay=null" in words
    assert [word.partition("=")[0] for word in words[1::2]] == [change.knob for change in made]
    both = CliRunner().invoke(app, ["preset", "flux-dev-vg", "--params", str(params), "--settings", "--apply"])
    assert "give one of the two" in str(both.exception)


def test_an_unknown_preset_is_refused_with_the_valid_names(root: Path) -> None:
    done = CliRunner().invoke(app, ["preset", "flux", "--params", str(root / "params.yaml")])
    assert str(done.exception) == f"preset 'flux' is unknown; valid: {', '.join(PRESETS)}"


@pytest.mark.parametrize(
    "text, says",
    [
        ("lorra: {rank: 4}\n", "lorra: unknown section; valid: data, "),
        ("lora: {rnak: 4}\n", "lora.rnak: unknown key; did you mean 'rank'?"),
        ("train: {losses: {margin: {weigth: 0}}}\n", "train.losses.margin.weigth: unknown key"),
        ("lora: {rank: none}\n", "lora.rank: got 'none'"),
        ("train: {losses: {ranking: {weight: 1}}}\n", "train.losses.ranking.probe: got"),
        ("lora: {blocks: 7..19}\n", "lora.blocks: block 19 is out of range; valid: 0..18"),
        ("lora: 4\n", "lora: got 4"),
    ],
)
def test_what_params_would_not_take_is_refused_and_nothing_written(root: Path, text: str, says: str) -> None:
    params, preset = root / "params.yaml", root / "presets" / "mine.yaml"
    preset.write_text(f"# mine\n{text}", encoding="utf-8")
    before = params.read_bytes()
    with pytest.raises(ParamsError) as caught:
        apply(params, preset)
    assert says in str(caught.value)
    assert params.read_bytes() == before


def test_values_are_shown_in_one_line() -> None:
    assert [shown(value) for value in (None, True, 0.5, "on", [7, "8..9"], {"a": {"b": 1}})] == [
        "null", "true", "0.5", "on", "[7, 8..9]", "{a: {b: 1}}",
    ]  # fmt: skip
