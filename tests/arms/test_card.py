"""A card that a hub can read, of the adapter's own facts; kohya's format read back by diffusers with the same updates."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import FluxPipeline
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from sgpipe.arms.adapter import read_about, save_adapter
from sgpipe.arms.card import LICENCES, card_text
from sgpipe.arms.config import Lora
from sgpipe.arms.convert import to_kohya, write_kohya
from sgpipe.arms.lora import LORA_FILE
from sgpipe.cli import app
from sgpipe.errors import DataError, ModelError
from sgpipe.params.blocks import Blocks
from sgpipe.report.card import completed_card, publish
from tests.training.world import World, tiny_train

VOCABULARY = {"names": ["cat", "dog"], "predicates": ["above", "on"], "triples": 2}
ROW = {"objects_present": 1.0, "direction_accuracy": 0.75, "direction_accuracy_low": 0.5, "direction_accuracy_high": 0.9}


@pytest.fixture(scope="module")
def folder(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    arm = world.arm(tiny_train())
    made = tmp_path_factory.mktemp("card") / "adapter"
    save_adapter(made, world.model(tiny_train()), arm, world.backbone, {"trained_on": VOCABULARY, "config": "abc"})
    return made


def evaluation(root: Path, config: str = "abc", arm: str = "graph") -> Path:
    """Metrics of an evaluation, and of the training it is of."""
    path = root / "evaluation.json"
    judges = {"exact": {"ground_truth_accuracy": 1.0}}
    arms = {
        "base": {"neutral": {"none": ROW}},
        arm: {"neutral": {"positive": ROW, "negative": {**ROW, "direction_accuracy": None}}},
    }
    said = {"arms": arms, "headline": {"judge": "exact", "prompt": "neutral"}, "judges": judges, "triples": 72, "seeds": 3}
    (root / "lora").mkdir()
    (root / "lora" / "graph.json").write_text(json.dumps({"config": config}))
    path.write_text(json.dumps(said))
    return path


def front(text: str) -> Any:
    return yaml.safe_load(text.split("---\n")[1])


def test_a_trained_adapter_has_a_card_of_its_own_facts(folder: Path, world: World) -> None:
    text = (folder / "README.md").read_text()
    data = ModelCard(text).data.to_dict()
    assert (data["base_model"], data["library_name"], data["license"]) == (world.backbone.model, "diffusers", "unknown")
    assert "lora" in data["tags"] and "model-index" not in data
    assert "FluxPipeline.from_pretrained" in text and 'graph="cat, above, dog"' in text
    assert "LoRA of rank 4 and α 4 on 8 projections of blocks [1..2] and graph tokens of layout `objects`" in text
    assert "read it before you publish" in text and "Nothing yet" in text


def test_the_base_that_notice_lists_has_its_licence_on_the_card(folder: Path, repo_root: Path) -> None:
    """Every base whose licence a card states stands in NOTICE.md with it; of the embedded one, which is ours, too."""
    about = read_about(folder)
    listed = [line for line in (repo_root / "NOTICE.md").read_text(encoding="utf-8").splitlines() if "Apache-2.0" in line]
    for base, licence in LICENCES.items():
        assert any(base.rpartition("/")[2] in line for line in listed), base
        text = card_text({**about, "backbone": {**about["backbone"], "model": base}}, "FluxPipeline")
        assert front(text)["license"] == licence == "apache-2.0" and "read it before you publish" not in text
    assert "models/mini-flux" in LICENCES


def test_the_completed_card_has_every_figure_with_its_interval(folder: Path, tmp_path: Path) -> None:
    metrics = evaluation(tmp_path)
    text = completed_card(folder, metrics)
    assert text == completed_card(folder, metrics)
    (index,) = front(text)["model-index"]
    (result,) = index["results"]
    (metric,) = result["metrics"]
    assert (index["name"], metric["type"], metric["value"]) == ("graph", "direction_accuracy", 0.75)
    assert "0.750 [0.500, 0.900]" in metric["name"] and result["dataset"]["name"] == "72 val triples × 3 seeds"
    assert "| graph, neutral prompt, g⁺ | 1.000 | 0.750 [0.500, 0.900] |" in text and "base, neutral prompt" in text
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    publish(folder, metrics, tmp_path / "mine")
    assert (tmp_path / "mine" / "README.md").read_text() == text
    assert {path.name for path in (tmp_path / "mine").iterdir()} == {path.name for path in folder.iterdir()}
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_figures_of_another_training_or_arm_are_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with pytest.raises(DataError, match="is of another training of graph"):
        completed_card(folder, evaluation(tmp_path / "a", config="other"))
    with pytest.raises(DataError, match="has no arm 'graph'; valid: base, text"):
        completed_card(folder, evaluation(tmp_path / "b", arm="text"))


def test_an_evaluation_of_another_layout_is_refused(folder: Path, tmp_path: Path) -> None:
    path = evaluation(tmp_path)
    whole = json.loads(path.read_text())
    for wrong in ([], {"arms": []}, {name: of for name, of in whole.items() if name != "headline"}):
        path.write_text(json.dumps(wrong))
        with pytest.raises(DataError, match=r"evaluation\.json: (is no metrics of an evaluation|has no arm 'graph'; valid: none)"):
            completed_card(folder, path)
    path.write_text(json.dumps(whole))
    (tmp_path / "lora" / "graph.json").write_text("[]")
    with pytest.raises(DataError, match=r"graph\.json: is no metrics of a training .*`dvc repro train_lora@graph` writes"):
        completed_card(folder, path)


@pytest.mark.parametrize("targets", [("to_q", "to_k", "to_v", "to_out.0"), ("to_q", "add_v_proj"), ("to_add_out", "to_v")])
@pytest.mark.parametrize("alpha", [4.0, 6.0])
def test_diffusers_reads_the_same_updates_from_kohyas_names(
    world: World, tmp_path: Path, targets: tuple[Any, ...], alpha: float
) -> None:
    lora = Lora(Blocks.parse("0..1"), targets=targets, rank=4, alpha=alpha)
    model = world.model(tiny_train(), lora=lora)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.trainable().values():
            weight.copy_(torch.randn(weight.shape, generator=draw))
    model.adapter.save(tmp_path)
    fused = {"to_q": "img_attn_qkv", "to_k": "img_attn_qkv", "to_v": "img_attn_qkv", "to_out.0": "img_attn_proj",
             "add_v_proj": "txt_attn_qkv", "to_add_out": "txt_attn_proj"}  # fmt: skip
    out = tmp_path / "kohya.safetensors"
    assert write_kohya(tmp_path, alpha, out) == 2 * len({fused[name] for name in targets})
    written, own = load_file(out), load_file(tmp_path / LORA_FILE)
    qkv = written.get("lora_unet_double_blocks_1_img_attn_qkv.lora_down.weight")
    assert (qkv is None) == (not {"to_q", "to_k", "to_v"} & set(targets)) and (qkv is None or len(qkv) == 12)
    pipe = FluxPipeline.from_pretrained(world.backbone.model)
    pipe.load_lora_weights(str(tmp_path), weight_name=out.name)
    for name, down in own.items():
        if ".lora_A." in name:
            layer = pipe.transformer.get_submodule(name.removeprefix("transformer.").partition(".lora_A")[0])
            wanted = own[name.replace("lora_A", "lora_B")] @ down * (alpha / 4)
            torch.testing.assert_close(layer.get_delta_weight("default_0"), wanted)


def test_a_file_that_diffusers_reads_otherwise_is_not_left(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file({name: torch.ones_like(value) for name, value in load_file(folder / LORA_FILE).items()}, tmp_path / LORA_FILE)
    monkeypatch.setattr("sgpipe.arms.convert.to_kohya", lambda weights, alpha: to_kohya(weights, 2 * alpha))
    with pytest.raises(ModelError, match=r"diffusers reads another LoRA than was written \(missing 0, error 1\)"):
        write_kohya(tmp_path, 4.0, tmp_path / "x.safetensors")
    assert not (tmp_path / "x.safetensors").exists()


def test_a_script_reads_what_was_converted(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.safetensors"
    ran = CliRunner().invoke(app, ["adapter", "convert", str(folder), "--out", str(out), "--json"], catch_exceptions=False)
    (said,) = ran.stdout.splitlines()
    told = json.loads(said)
    assert (told["file"], out.is_file()) == (str(out), True)
    assert told["modules"] == sum(name.endswith(".alpha") for name in load_file(out))
    assert [f"warning: {each}" for each in told["warnings"]] == [line for line in ran.stderr.splitlines() if "graph tokens" in line]


def test_single_blocks_have_one_projection_for_all() -> None:
    """linear1 is [q; k; v; MLP], of which only q has LoRA here."""
    down, up = torch.randn(2, 8), torch.randn(8, 2)
    name = "transformer.single_transformer_blocks.3.attn.to_q.lora_{}.weight"
    made = to_kohya({name.format("A"): down, name.format("B"): up}, 2.0)
    key = "lora_unet_single_blocks_3_linear1"
    whole = made[f"{key}.lora_up.weight"] @ made[f"{key}.lora_down.weight"] * (made[f"{key}.alpha"] / 8)
    assert whole.shape == (7 * 8, 8)
    torch.testing.assert_close(whole[:8], up @ down)
    assert not whole[8:].any()


def test_what_has_no_place_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no_such\.lora_A\.weight: kohya's naming of FLUX\.1 has no place"):
        to_kohya({"transformer.no_such.lora_A.weight": torch.zeros(1, 1)}, 1.0)
    with pytest.raises(ModelError, match="nothing to convert"):
        write_kohya(tmp_path, 1.0, tmp_path / "x.safetensors")
    save_file({"transformer.transformer_blocks.0.ff.lora_A.weight": torch.zeros(1, 1)}, tmp_path / LORA_FILE)
    with pytest.raises(ModelError, match="has no place for these"):
        write_kohya(tmp_path, 1.0, tmp_path / "x.safetensors")
    assert not (tmp_path / "x.safetensors").exists()
