"""Checkpoints are what their class and configuration promise: nothing is completed at random, left out or ignored."""

import errno
import json
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sgpipe.backbones.families import read_layout
from sgpipe.backbones.loading import load_module, load_plain
from sgpipe.backbones.strict import check_report, write_tensors
from sgpipe.errors import ModelError
from sgpipe.evaluation.config import Judge
from sgpipe.evaluation.judge_factory import open_judge
from sgpipe.graph_encoder.config import GraphEncoder
from sgpipe.graph_encoder.tower import ImageTower
from sgworld.contrast import Tower, build_clip, save_local
from tests.tiny import backbone_of, edit_json

CPU = torch.device("cpu")
WEIGHTS = {
    "text_encoder": ("model.safetensors", "encoder.layers.0.layer_norm1.weight"),
    "text_encoder_2": ("model.safetensors", "encoder.block.0.layer.0.SelfAttention.o.weight"),
    "transformer": ("diffusion_pytorch_model.safetensors", "context_embedder.weight"),
    "vae": ("diffusion_pytorch_model.safetensors", "decoder.conv_in.weight"),
}


@pytest.fixture
def copy(schnell: Path, tmp_path: Path) -> Path:
    return shutil.copytree(schnell, tmp_path / "copy")


def rewrite(path: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    state = load_file(path)
    change(state)
    save_file(state, path, metadata={"format": "pt"})


@pytest.mark.parametrize("part", WEIGHTS)
def test_a_tensor_that_is_missing_unexpected_or_misshapen_is_named(copy: Path, part: str) -> None:
    """The libraries warn of the first two, and complete the weights at random."""
    file, name = WEIGHTS[part]
    path = copy / part / file
    whole = path.read_bytes()
    rewrite(path, lambda state: state.pop(name))
    with pytest.raises(ModelError, match=rf"{part}: {name} is missing; fetch") as refused:
        load_module(backbone_of(copy), part)
    assert "\n" not in str(refused.value)
    path.write_bytes(whole)
    rewrite(path, lambda state: state.update({"blocks.7.surplus": torch.zeros(2)}))
    with pytest.raises(ModelError, match=rf"{part}: blocks\.7\.surplus is unexpected"):
        load_module(backbone_of(copy), part)
    path.write_bytes(whole)
    rewrite(path, lambda state: state.update({name: torch.zeros(3, 5)}))
    with pytest.raises(ModelError, match="the weights do not fit their config"):
        load_module(backbone_of(copy), part)


def test_a_tied_weight_and_a_buffer_that_the_module_computes_may_differ(copy: Path) -> None:
    """The T5 of FLUX states its table of words once or twice, and older CLIP files hold their positions' numbers."""
    before = {part: load_module(backbone_of(copy), part).state_dict() for part in WEIGHTS}
    t5, clip = (copy / part / "model.safetensors" for part in ("text_encoder_2", "text_encoder"))
    rewrite(t5, lambda state: state.update({"encoder.embed_tokens.weight": state.pop("shared.weight").clone()}))
    positions = load_file(clip)["embeddings.position_embedding.weight"].shape[0]
    ids = {"embeddings.position_ids": torch.arange(positions)[None]}
    rewrite(clip, lambda state: state.update(ids))
    for part in ("text_encoder", "text_encoder_2"):
        after = load_module(backbone_of(copy), part).state_dict()
        assert after.keys() == before[part].keys()
        assert all(torch.equal(value, before[part][name]) for name, value in after.items())


def test_what_may_be_absent_is_decided_by_the_module_and_not_by_the_name(schnell: Path) -> None:
    module = load_module(backbone_of(schnell), "text_encoder_2")
    clean = {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": []}
    check_report(module, {**clean, "missing_keys": ["shared.weight"]}, "x", "y")
    for report, says in [
        (
            {"missing_keys": ["shared.weight", "encoder.embed_tokens.weight"]},
            "encoder.embed_tokens.weight is missing; shared.weight is missing",
        ),
        ({"unexpected_keys": ["encoder.position_ids"]}, "encoder.position_ids is unexpected"),
        ({"mismatched_keys": [("shared.weight", (1,), (2,))]}, r"shared.weight \(1,\) \(2,\) is of another"),
        ({"missing_keys": [f"a{i}" for i in range(7)]}, "a0 is missing; .*; a4 is missing and 2 more; y"),
    ]:
        with pytest.raises(ModelError, match=f"x: {says}"):
            check_report(module, {**clean, **report}, "x", "y")


def test_a_configuration_of_another_architecture_or_with_ignored_entries_is_refused(copy: Path) -> None:
    backbone = backbone_of(copy)
    edit_json(copy / "text_encoder_2" / "config.json", model_type="umt5")
    with pytest.raises(ModelError, match=r"describes a umt5, and model_index\.json asks for a t5"):
        load_module(backbone, "text_encoder_2")
    edit_json(copy / "vae" / "config.json", _class_name="AutoencoderTiny")
    with pytest.raises(ModelError, match=r"describes a AutoencoderTiny, and .* asks for a AutoencoderKL"):
        load_module(backbone, "vae")
    edit_json(copy / "transformer" / "config.json", qk_norm="layer_norm", sparse_blocks=None)
    with pytest.raises(ModelError, match=r"config\.json: qk_norm: unknown to this diffusers'"):
        load_module(backbone, "transformer")
    edit_json(copy / "scheduler" / "scheduler_config.json", _class_name="DDIMScheduler")
    with pytest.raises(ModelError, match="describes a DDIMScheduler"):
        load_plain(backbone, "scheduler")
    edit_json(copy / "tokenizer_2" / "tokenizer_config.json", tokenizer_class="GemmaTokenizer")
    with pytest.raises(ModelError, match=r"describes a GemmaTokenizer, and .* asks for a T5Tokenizer"):
        load_plain(backbone, "tokenizer_2")
    edit_json(copy / "tokenizer" / "tokenizer_config.json", tokenizer_class="CLIPTokenizerFast")
    load_plain(backbone, "tokenizer")


@pytest.mark.parametrize("part", ["tokenizer", "tokenizer_2"])
def test_a_tokenizer_without_its_vocabulary_is_refused(copy: Path, part: str) -> None:
    """transformers makes one of its special tokens alone, to which every word is unknown, and says nothing."""
    (copy / part / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=rf"{part}: no vocabulary \(tokenizer\.json"):
        load_plain(backbone_of(copy), part)


ODD = (None, "odd", -1, 0, [], {}, 1.5)


@pytest.mark.parametrize("part", [*WEIGHTS, "tokenizer", "tokenizer_2", "scheduler"])
def test_any_value_of_a_configuration_loads_or_is_refused_in_one_line(copy: Path, part: str) -> None:
    """Libraries raise errors of many classes for them; none is a traceback here."""
    load = load_module if part in WEIGHTS else load_plain
    (path,) = (p for p in (copy / part).glob("*config.json"))
    whole = json.loads(path.read_text())
    refused = 0
    for place, key in enumerate(sorted(whole)):
        for odd in (ODD[place % len(ODD)], ODD[(place + 3) % len(ODD)]):
            path.write_text(json.dumps({**whole, key: odd}))
            try:
                load(backbone_of(copy), part)
            except ModelError as error:
                refused += 1
                assert "\n" not in str(error)
    assert refused
    path.write_text("[]")
    with pytest.raises(ModelError, match="a JSON object is needed, got list"):
        load(backbone_of(copy), part)


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("key", ["num_attention_heads", "in_channels", "patch_size", "joint_attention_dim"])
def test_a_layout_of_odd_values_is_refused_in_one_line(copy: Path, key: str, odd: object) -> None:
    edit_json(copy / "transformer" / "config.json", **{key: odd})
    with pytest.raises(ModelError) as refused:
        read_layout(copy, backbone_of(copy))
    assert "\n" not in str(refused.value)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    tower = Tower(width=32, layers=1, patch=16, embed=16)
    save_local(build_clip(tower, 0), tower, tmp_path / "clip")
    return tmp_path / "clip"


def test_an_open_clip_model_that_lacks_weights_or_has_anothers_is_refused(clip: Path) -> None:
    """open_clip leaves the first one random, and stretches the positions of the last."""
    judge = Judge(kind="open_clip", model=f"local-dir:{clip}")
    knobs = GraphEncoder(tower=f"local-dir:{clip}", files=str(clip))
    weights = clip / "open_clip_model.safetensors"
    whole = weights.read_bytes()

    def refused(says: str) -> None:
        with pytest.raises(ModelError, match=says):
            open_judge("clip", judge, CPU)
        with pytest.raises(ModelError, match=says):
            ImageTower(knobs, CPU)

    weights.unlink()
    refused("open_clip_model.safetensors: no such file")
    weights.write_bytes(whole)
    rewrite(weights, lambda state: state.pop("visual.proj"))
    refused("visual.proj")
    weights.write_bytes(whole)
    rewrite(weights, lambda state: state.update({name: value.float() for name, value in state.items()}))
    config = json.loads((clip / "open_clip_config.json").read_text())
    config["model_cfg"]["vision_cfg"]["image_size"] = 32
    (clip / "open_clip_config.json").write_text(json.dumps(config))
    refused(r"visual\.positional_embedding is \(17, 32\), expected \(5, 32\)")


def test_tensors_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    """The same bytes in any order of the names, readable by all; a disk that refuses is an error of the machine."""
    tensors = {name: torch.randn(40, 40).T for name in "bac"}
    for name, given in (("a", tensors), ("b", dict(sorted(tensors.items())))):
        write_tensors(given, tmp_path / name, {"format": "pt"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o644
    before, limits = (tmp_path / "a").read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OSError, match=r"File too large: '.*/a'") as caught:
            write_tensors({"x": torch.zeros(4096)}, tmp_path / "a")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG
    assert (tmp_path / "a").read_bytes() == before and sorted(each.name for each in tmp_path.iterdir()) == ["a", "b"]
