"""What is loaded and what is refused: whole local folders, pinned hub ids, safetensors, known classes, the stated layout."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError

from sgpipe.backbones.families import read_layout
from sgpipe.backbones.families.flux import Flux
from sgpipe.backbones.loading import load_module, load_plain
from sgpipe.backbones.source import identity, locate
from sgpipe.backbones.weights import loaded_files
from sgpipe.errors import ModelError, ParamsError
from sgpipe.runs.state import config_hash, file_hash
from tests.tiny import DOUBLE, SINGLE, backbone_of, edit_json

COMMIT = "0123456789abcdef0123456789abcdef01234567"
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def copy(schnell: Path, tmp_path: Path) -> Path:
    return shutil.copytree(schnell, tmp_path / "copy")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": "models/nowhere", "files": "models/nowhere"}, "`dvc pull models.dvc`"),
        ({"revision": COMMIT}, "set backbone.revision to null"),
        ({"files": "presets/hub"}, "set backbone.files to the same folder"),
        ({"model": "someone/flux", "files": "presets/hub"}, "needs a commit"),
        ({"model": "someone/flux", "files": "presets/hub", "revision": "main"}, "needs a commit"),
        ({"model": "someone/flux", "revision": COMMIT}, "set backbone.files to presets/hub"),
    ],
)
def test_what_params_may_not_say(schnell, changes, says):
    with pytest.raises((ModelError, ParamsError), match=says) as refused:
        locate(backbone_of(schnell, **changes), ["vae"])
    assert "\n" not in str(refused.value)


def hub_backbone(schnell: Path):
    return backbone_of(schnell, model="someone/flux", files="presets/hub", revision=COMMIT)


@pytest.mark.parametrize("kind", [LocalEntryNotFoundError, HTTPError])
def test_a_hub_id_without_weights_is_one_line_with_the_ways_out(schnell, tmp_path, monkeypatch, kind):
    def unreachable(*args, **kwargs):
        raise kind("Got: ConnectError\nAn error happened while trying to locate the files")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    with pytest.raises(ModelError) as refused:
        load_module(hub_backbone(schnell), "vae")
    text = str(refused.value)
    assert "\n" not in text
    for words in ("not in the hub cache", "ConnectError", "hf download someone/flux", COMMIT, "local folder"):
        assert words in text


def test_a_pinned_snapshot_in_the_hub_cache_is_taken_and_missing_parts_are_asked_for(schnell, tmp_path, monkeypatch):
    snapshot = tmp_path / "models--someone--flux" / "snapshots" / COMMIT
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    shutil.copytree(schnell, snapshot, ignore=shutil.ignore_patterns("transformer"))
    asked = []

    def download(model, revision, allow_patterns):
        asked.append((model, revision, allow_patterns))
        shutil.copytree(schnell / "transformer", snapshot / "transformer")
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    backbone = hub_backbone(schnell)
    assert locate(backbone, Flux.text_parts) == snapshot and asked == []
    assert locate(backbone, ["transformer"]) == snapshot
    assert asked[0][:2] == ("someone/flux", COMMIT)
    assert "transformer/*.safetensors" in asked[0][2]
    assert not any("text_encoder" in pattern or pattern.endswith(".bin") for pattern in asked[0][2])


def test_broken_and_foreign_weights_are_refused_in_one_line(copy):
    backbone, path = backbone_of(copy), copy / "vae" / WEIGHTS
    whole = path.read_bytes()
    for content, says in [(whole[:-8], "its tensors need"), (b"version https://git-lfs", "git lfs pull")]:
        path.write_bytes(content)
        with pytest.raises(ModelError, match=says):
            load_module(backbone, "vae")
    path.unlink()
    torch.save({}, copy / "vae" / "diffusion_pytorch_model.bin")
    with pytest.raises(ModelError, match=r"no \.safetensors file"):
        load_module(backbone, "vae")
    path.write_bytes(whole)
    edit_json(copy / "vae" / "config.json", latent_channels=6)
    with pytest.raises(ModelError, match="do not fit their config") as refused:
        load_module(backbone, "vae")
    assert "\n" not in str(refused.value)
    shutil.rmtree(copy / "tokenizer")
    with pytest.raises(ModelError, match="tokenizer: no such folder"):
        load_plain(backbone, "tokenizer")


@pytest.mark.parametrize("named", [["my_package", "AutoencoderKL"], [None, None], ["diffusers", "NoSuchVae"]])
def test_only_classes_of_diffusers_and_transformers_are_loaded(copy, named):
    edit_json(copy / "model_index.json", vae=named)
    with pytest.raises(ModelError, match=r"model_index\.json: vae"):
        load_module(backbone_of(copy), "vae")


def test_parts_are_frozen_in_the_precision_asked_for(schnell):
    for part in ("transformer", "text_encoder", "text_encoder_2", "vae"):
        module = load_module(backbone_of(schnell, dtype="bfloat16"), part)
        assert not module.training
        assert all(not p.requires_grad and p.dtype == torch.bfloat16 for p in module.parameters())


def test_the_layout_describes_the_modules(schnell):
    layout, transformer = (read_layout(schnell, backbone_of(schnell)), load_module(backbone_of(schnell), "transformer"))
    for pattern, count in [(layout.double_block, DOUBLE), (layout.single_block, SINGLE)]:
        for index in range(count):
            transformer.get_submodule(pattern.format(index=index))
        with pytest.raises(AttributeError):
            transformer.get_submodule(pattern.format(index=count))
    block = transformer.get_submodule(layout.double_block.format(index=0))
    for name in layout.image_projections + layout.text_projections:
        assert block.get_submodule(name).in_features == 32
    assert transformer.context_embedder.in_features == layout.text_width
    assert transformer.x_embedder.in_features == layout.latent_channels * layout.patch**2
    assert block.attn.heads == 2 and block.attn.head_dim == 16
    shape = load_module(backbone_of(schnell), "vae").encode(torch.zeros(1, 3, 32, 32)).latent_dist.mean.shape
    assert tuple(shape[1:]) == layout.latent_shape(32)
    assert layout.grid(32) ** 2 * layout.patch**2 == shape[2] * shape[3]


def test_a_layout_that_is_not_the_stated_one_is_refused(copy):
    with pytest.raises(ParamsError, match=r"has 3 double and 1 single blocks, params\.yaml says 19 and 2"):
        read_layout(copy, backbone_of(copy, double_blocks=19, single_blocks=2))
    with pytest.raises(ParamsError, match="got 34; this model needs a multiple of 4"):
        read_layout(copy, backbone_of(copy, resolution=34))
    edit_json(copy / "vae" / "config.json", latent_channels=6)
    with pytest.raises(ModelError, match="6 × 2 × 2 = 24 channels"):
        read_layout(copy, backbone_of(copy))
    edit_json(copy / "model_index.json", _class_name="SanaPipeline")
    with pytest.raises(ModelError, match="is a SanaPipeline; valid: FluxPipeline, StableDiffusion3Pipeline"):
        read_layout(copy, backbone_of(copy))


def test_identity_follows_content_precision_and_settings_but_not_place_or_other_parts(schnell, copy):
    def who(folder, **changes):
        return config_hash(identity(backbone_of(folder, **changes), ["vae"], resolution=32))

    first = who(schnell)
    edit_json(copy / "transformer" / "config.json", note="retrained")
    assert who(copy) == first
    assert who(copy, dtype="bfloat16") != first
    assert config_hash(identity(backbone_of(copy), ["vae"], resolution=64)) != first
    edit_json(copy / "vae" / "config.json", scaling_factor=0.5)
    assert who(copy) != first
    hub = hub_backbone(schnell)
    assert identity(hub, ["vae"])["weights"] == {"hub": "someone/flux", "revision": COMMIT}


JUNK = (".DS_Store", ".gitkeep", "config.json~", "model.safetensors.tmp", "README.md", "a (copy).safetensors")


def test_identity_knows_only_what_the_loaders_read(schnell, copy):
    """Of a folder that holds nothing else it is the folder's hash; what an editor or a desktop leaves changes nothing."""
    parts = ("transformer", "vae", "scheduler", *Flux.text_parts)
    before = identity(backbone_of(schnell), parts)
    assert before["weights"] == {part: file_hash(schnell / part) for part in parts}
    for part in parts:
        for name in JUNK:
            (copy / part / name).write_bytes(b"left behind")
    assert identity(backbone_of(copy), parts) == before
    for part in parts:
        for path in loaded_files(schnell / part):
            kept = (copy / part / path.name).read_bytes()
            (copy / part / path.name).write_bytes(kept + b" " if path.suffix == ".json" else kept[:-1] + b"!")
            assert identity(backbone_of(copy), [part]) != identity(backbone_of(schnell), [part]), path
            (copy / part / path.name).write_bytes(kept)


def test_of_one_file_and_shards_the_one_that_the_library_reads_counts(copy):
    """diffusers prefers the index, transformers the single file."""
    for part, name in (("vae", WEIGHTS), ("text_encoder", "model.safetensors")):
        index = {"weight_map": {"a": "shard-1.safetensors"}}
        (copy / part / f"{name}.index.json").write_text(json.dumps(index))
    assert {path.name for path in loaded_files(copy / "vae")} == {
        "config.json", f"{WEIGHTS}.index.json", "shard-1.safetensors"
    }  # fmt: skip
    assert {path.name for path in loaded_files(copy / "text_encoder")} == {"config.json", "model.safetensors"}
    (copy / "text_encoder" / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"text_encoder: shard-1\.safetensors is missing"):
        load_module(backbone_of(copy), "text_encoder")
