"""What is there and what is missing."""

import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import psutil
import pyarrow as pa
import pytest
import typer
import yaml
from msgspec.structs import replace
from typer.testing import CliRunner

from sgpipe.backbones.config import Backbone
from sgpipe.backbones.families import read_layout
from sgpipe.backbones.loading import load_module, load_plain
from sgpipe.backbones.weights import tensors
from sgpipe.datasets.config import Data
from sgpipe.datasets.tables import TRIPLES, write_table
from sgpipe.doctor import inputs, machine
from sgpipe.doctor.cli import doctor
from sgpipe.doctor.findings import Finding, Level
from sgpipe.doctor.inputs import check_dvc, check_guidance, check_parameters, check_pipeline
from sgpipe.doctor.memory import GIB
from sgpipe.errors import ModelError, ParamsError, SgpipeError
from sgpipe.fetch.visual_genome import REJECTS
from sgpipe.params.show import load_all

BACKBONE = {"double_blocks": 3, "single_blocks": 1, "resolution": 32, "max_sequence_length": 8}


COMMIT = "0123456789abcdef0123456789abcdef01234567"


def local(folder: Path) -> Backbone:
    return Backbone(model=str(folder), files=str(folder), **BACKBONE)


def levels(findings: list[Finding]) -> dict[Level, list[str]]:
    return {level: [f.what for f in findings if f.level is level] for level in Level}


def failures(findings: list[Finding]) -> str:
    bad = [finding for finding in findings if finding.level is not Level.OK]
    assert all(finding.remedy for finding in bad)
    return "\n".join(f"{finding.what} -> {finding.remedy}" for finding in bad)


def check_data(root: Path, triples: list[Path], pulled: bool, kind: str = "visual_genome") -> list[Finding]:
    return inputs.check_data(Data(kind, str(root)), triples, pulled)


@pytest.fixture
def data(tmp_path):
    root = tmp_path / "data"
    (root / "VG_100K").mkdir(parents=True)
    for name in ("image_data", "objects", "relationships"):
        (root / f"{name}.json").write_text('[{"image_id": 1}]\n')
    (root / "VG_100K" / "1.jpg").write_bytes(b"jpeg")
    with zipfile.ZipFile(root / "images.zip", "w") as archive:
        archive.writestr("VG_100K_2/2.jpg", b"jpeg")
    return root


def triples_showing(folder, *image_ids: int):
    rows = [{"triple_id": f"t{i}", "image_id": i} for i in image_ids]
    write_table(pa.Table.from_pylist(rows, schema=TRIPLES), folder / "triples.parquet")
    return [folder / "triples.parquet", folder / "not_made_yet.parquet"]


def test_whole_data_folder(data, tmp_path):
    assert failures(check_data(data, triples_showing(tmp_path, 1, 2), False)) == ""
    assert failures(check_data(data, [], False)) == ""


def test_what_a_data_folder_lacks(data, tmp_path):
    assert "sgpipe fetch visual-genome" in failures(check_data(tmp_path / "none", [], False))
    assert failures(check_data(tmp_path / "none", [], True)).endswith("-> dvc pull none.dvc")
    text = failures(check_data(data, triples_showing(tmp_path, 1, 2, 3, 4), False))
    assert "2 of 4 images are not in" in text and "--triples" in text
    (data / "objects.json").unlink()
    (data / "relationships.json").write_text('[{"image_id": 1}, {"im')
    (data / "image_data.json").write_text("version https://git-lfs.github.com/spec/v1")
    (data / "images.zip").write_bytes(b"PK half an archive")
    (data / REJECTS).write_text(json.dumps({"rejects": [{"image_id": 7, "url": "u", "reason": "HTTP 404"}]}))
    text = failures(check_data(data, [], False))
    for words in ("objects.json: no such file", "does not end with ]", "begins with b'version", "images.zip: ", "HTTP 404"):
        assert words in text
    (data / "images.zip").unlink()
    shutil.rmtree(data / "VG_100K")
    assert "no image, neither loose nor zipped" in failures(check_data(data, [], False))


@pytest.mark.parametrize(
    "text", ["", '{"rejects"', "[]", '{"rejects": [7]}', '{"rejects": [{"image_id": 7}]}', '{"rejects": null}']
)
def test_a_damaged_list_of_rejects_is_a_finding(data: Path, text: str) -> None:
    (data / REJECTS).write_text(text)
    assert f"{data / REJECTS}: not what `sgpipe fetch` wrote" in failures(check_data(data, [], False))


def test_an_unknown_kind_of_data_set_is_a_finding(data: Path) -> None:
    text = failures(check_data(data, [], False, "coco"))
    assert "data.kind: got 'coco'; valid: visual_genome" in text


def test_whole_pipeline(pipeline):
    findings = check_pipeline(local(pipeline))
    assert failures(findings) == "" and "7 parts" in findings[0].what


def test_what_a_pipeline_lacks(pipeline, tmp_path):
    backbone = replace(local(pipeline), double_blocks=19)
    assert "has 3 double and 1 single blocks, params.yaml says 19 and 1" in failures(check_pipeline(backbone))
    name = "diffusion_pytorch_model.safetensors"
    whole = (pipeline / "vae" / name).read_bytes()
    (pipeline / "vae" / name).write_bytes(whole[:-10])
    (pipeline / "transformer" / name).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    (pipeline / "text_encoder" / "model.safetensors").unlink()
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (pipeline / "text_encoder_2" / "model.safetensors").unlink()
    (pipeline / "text_encoder_2" / "model.safetensors.index.json").write_text(json.dumps(index))
    shutil.rmtree(pipeline / "scheduler")
    text = failures(check_pipeline(local(pipeline)))
    for words in (
        f"its tensors need {len(whole)} bytes, there are {len(whole) - 10}",
        "a Git LFS pointer",
        "text_encoder: no .safetensors file",
        "model-00001-of-00002.safetensors is missing",
        "scheduler: no such folder",
    ):
        assert words in text
    (pipeline / "model_index.json").unlink()
    assert "not a whole diffusers pipeline folder" in failures(check_pipeline(local(pipeline)))


def test_hub_ids_are_looked_up_in_the_cache(pipeline, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    backbone = Backbone(model="someone/flux", revision=COMMIT, **BACKBONE)
    assert f"hf download someone/flux --revision {COMMIT}" in failures(check_pipeline(backbone))
    shutil.copytree(pipeline, tmp_path / "hub" / "models--someone--flux" / "snapshots" / COMMIT)
    assert failures(check_pipeline(backbone)) == ""
    (tmp_path / "hub" / "models--someone--flux" / "refs").mkdir()
    (tmp_path / "hub" / "models--someone--flux" / "refs" / "main").write_text(COMMIT)
    assert "needs a commit (40 hex digits)" in failures(check_pipeline(Backbone(model="someone/flux", **BACKBONE)))


def test_scales_that_the_pipeline_does_not_take(pipeline, repo_root):
    sections = load_all(repo_root / "params.yaml")

    def found(distilled: bool, **scales: float) -> str:
        config = json.loads((pipeline / "transformer" / "config.json").read_text())
        (pipeline / "transformer" / "config.json").write_text(json.dumps({**config, "guidance_embeds": distilled}))
        changed = {name: replace(sections[name], guidance=scale) for name, scale in scales.items()}
        return failures(check_guidance(local(pipeline), {**sections, **changed}))

    assert "train.guidance: got null -> this transformer takes the scale as an input: set it" in found(True)
    assert found(True, train=3.5, evaluate=0.5) == found(False) == found(False, evaluate=4.5, saliency=1.0) == ""
    assert "train.guidance: got 4.5 -> this transformer takes no scale" in found(False, train=4.5)
    text = found(False, evaluate=0.5, saliency=0.2)
    assert "evaluate.guidance: got 0.5 ->" in text and "saliency.guidance: got 0.2 ->" in text
    absent = Backbone(model="someone/flux", revision=COMMIT, **BACKBONE)
    assert check_guidance(absent, sections) == []


@pytest.mark.parametrize("content", [b"", b"\x05\0\0\0\0\0\0\0junk!", b"\xff" * 16])
def test_files_that_are_no_safetensors(tmp_path, content):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(ValueError):
        tensors(tmp_path / "x.safetensors")


def repository(root, size: int = 4, remote: str = "../store"):
    (root / ".dvc").mkdir()
    (root / ".dvc" / "config").write_text(f"[core]\n    remote = here\n['remote \"here\"']\n    url = {remote}\n")
    out = {"md5": "ab" + "0" * 30, "size": size, "hash": "md5", "path": "weights.bin"}
    (root / "weights.bin.dvc").write_text(yaml.safe_dump({"outs": [out]}))
    return root


def test_dvc_state(tmp_path):
    assert "no DVC repository" in failures(check_dvc(tmp_path))
    root = repository(tmp_path)
    (tmp_path / "store").mkdir()
    text = failures(check_dvc(root))
    assert "neither in the workspace nor in the cache nor in the remote" in text
    held = tmp_path / "store" / "files" / "md5" / "ab"
    held.mkdir(parents=True)
    (held / ("0" * 30)).write_bytes(b"four")
    assert "weights.bin: not pulled -> dvc pull" in failures(check_dvc(root))
    shutil.copytree(tmp_path / "store" / "files", root / ".dvc" / "cache" / "files")
    assert "in the cache, not in the workspace -> dvc checkout" in failures(check_dvc(root))
    (root / "weights.bin").write_bytes(b"four")
    assert failures(check_dvc(root)) == ""
    (root / "weights.bin").write_bytes(b"three")
    assert "5 bytes; its .dvc file says 1 files, 4 bytes" in failures(check_dvc(root))
    shutil.rmtree(tmp_path / "store")
    assert "is not a folder" in failures(check_dvc(root))
    (root / ".dvc" / "config").write_text("")
    assert "no default remote" in failures(check_dvc(root))


def test_packages_against_the_lock(tmp_path, repo_root):
    assert levels(machine.check_python(repo_root))[Level.FAIL] == []
    assert "not the project's folder" in failures(machine.check_python(tmp_path))
    (tmp_path / "pyproject.toml").write_text('[project]\ndependencies = ["numpy>=2", "no-such-package==1", "Typer"]\n')
    (tmp_path / "requirements.lock").write_text("numpy==1.0.0 \\\n    --hash=sha256:00\ntyper==0.0.1\n")
    text = failures(machine.check_python(tmp_path))
    assert "not installed: no-such-package" in text and "(locked 1.0.0)" in text and "(locked 0.0.1)" in text


def test_disk_and_memory(tmp_path, need, monkeypatch):
    assert len(machine.check_disk({"a": tmp_path, "b": tmp_path / "not" / "there"})) == 1
    monkeypatch.setattr(machine, "LEAST_FREE", 1 << 62)
    assert "free some space" in failures(machine.check_disk({"a": tmp_path}))
    assert "larger disk" in failures([machine.check_download(need, tmp_path / "hub")])
    assert 0 < machine.available_memory() <= psutil.virtual_memory().total
    assert failures(machine.check_memory(need, "auto", [])) == ""
    assert failures(machine.check_memory(need, "auto", [("GPU", 24.0)])) == ""
    assert "no CUDA GPU is visible" in failures(machine.check_memory(need, "cuda", []))
    assert "even with" in failures(machine.check_memory(need, "cuda", [("GPU", 0.5)]))
    monkeypatch.setattr(machine, "available_memory", lambda: 1000)
    assert "LoRA training" in failures(machine.check_memory(need, "cpu", [("GPU", 24.0)]))


def test_a_quantised_base_needs_a_gpu_and_its_package():
    backbone = Backbone("a", 19, 38, 256, 256)
    assert machine.check_quantisation(backbone, False) == []
    (finding,) = machine.check_quantisation(replace(backbone, quantisation="nf4"), False)
    assert finding.level is Level.FAIL and finding.remedy == "set it to null"
    assert finding.what.startswith("backbone.quantisation: got nf4; bitsandbytes needs a CUDA GPU")


def test_command(data, pipeline, tmp_path, repo_root, monkeypatch):
    app = typer.Typer()
    app.command()(doctor)
    (tmp_path / "store").mkdir()
    repository(tmp_path)
    for name in ("requirements.lock", "pyproject.toml"):
        shutil.copy(repo_root / name, tmp_path / name)
    monkeypatch.chdir(repo_root)
    sections = yaml.safe_load((repo_root / "params.yaml").read_text())
    sections["maps"]["groups"] = {"early": "0..0", "middle": "1..1", "late": "2..2"}
    sections["backbone"] = {"model": str(pipeline), "files": str(pipeline), **BACKBONE}
    sections["lora"] |= {"blocks": "0..2", "rank": 4}
    sections["train"]["batch_size"] = 3
    for name in ("train", "evaluate", "saliency", "saliency_noised"):
        sections[name]["guidance"] = 3.5
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(sections))
    words = ["--params", str(tmp_path / "params.yaml"), "--gpu", "16"]
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(machine, "LEAST_FREE", GIB // 1024)
    result = CliRunner().invoke(app, [*words, "--no-memory"])
    assert "LoRA training" not in result.output
    assert result.exit_code == 1 and "missing" in result.output and "weights.bin" in result.output
    read = json.loads(CliRunner().invoke(app, [*words, "--no-memory", "--json"]).stdout)
    assert {each["level"] for each in read} >= {"ok", "missing"} and set(read[0]) == {"level", "area", "what", "remedy"}
    (tmp_path / "weights.bin").write_bytes(b"four")

    def output(*more: str) -> str:
        result = CliRunner().invoke(app, [*words, *more])
        assert result.exit_code == 0, result.output
        return " ".join(result.output.split())

    text = output("--blocks", "1..2")
    assert "4,096 in LoRA of rank 4 on blocks [1..2]; 32 px" in text and "LoRA training" in text
    assert "batch 3 × 2 graphs" in text
    for wrong, says in (("2..1", "--blocks: got '2..1'"), ("7", "--blocks: block 7 is out of range; valid: 0..2")):
        error = CliRunner().invoke(app, [*words, "--blocks", wrong]).exception
        assert isinstance(error, SgpipeError) and says in str(error)
    sections["lora"] |= {"targets": ["to_out.0", "proj_out"], "single_blocks": "0", "blocks": "1..2"}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(sections))
    assert "2,560 in LoRA of rank 4 on blocks [1..2] and single blocks [0]; 32 px" in output()
    sections["lora"] |= {"targets": ["proj_out"], "single_blocks": "none"}
    del sections["arms"]["text_only"]
    sections["evaluate"]["adapters"] = {"graph": "graphs"}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(sections))
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 1 and "none of lora.blocks [1..2] has it" in " ".join(result.output.split())
    del sections["report"]
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(sections))
    error = CliRunner().invoke(app, words).exception
    assert isinstance(error, ParamsError) and "sections missing: report" in str(error)


def test_commands_are_listed_without_loading_what_they_need(repo_root):
    code = (
        "import sys, sgpipe.doctor.cli, sgpipe.fetch.cli; "
        "print({'torch', 'diffusers', 'transformers', 'pyarrow', 'requests', 'pooch', 'PIL', 'dvc'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=repo_root, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_no_remedy_is_a_plain_pull(repo_root):
    """The outputs of stages are not in the remote: without names `dvc pull` ends with 1 and a list of them."""
    files = [*repo_root.glob("sgpipe/**/*.py"), *repo_root.glob("stages/*.py"), *repo_root.glob("docs/*.md")]
    plain = re.compile(r"dvc pull(?! [^`\s]+\.dvc)")
    named = [path.name for path in [*files, repo_root / "README.md"] if plain.search(path.read_text())]
    assert named == []


def test_what_the_stages_refuse_the_doctor_refuses(pipeline, tmp_path):
    """By their own checks: pinning, resolution, classes of parts, a tokenizer without a vocabulary."""
    sound = local(pipeline)
    assert failures(check_pipeline(sound)) == ""
    assert "backbone.resolution: got 34 -> this model needs a multiple of 4" in failures(
        check_pipeline(replace(sound, resolution=34))
    )
    assert "set backbone.files to the same folder" in failures(check_pipeline(replace(sound, files="presets/hub")))
    index = json.loads((pipeline / "model_index.json").read_text())
    for changes, says in [
        ({"_class_name": "SanaPipeline"}, "valid: FluxPipeline"),
        ({"vae": ["my_package", "Vae"]}, "vae comes from 'my_package'"),
        ({"text_encoder": ["transformers", "T5EncoderModel"]}, "describes a clip_text_model"),
        ({"tokenizer": None}, "tokenizer comes from None"),
    ]:
        (pipeline / "model_index.json").write_text(json.dumps({**index, **changes}))
        with pytest.raises((ModelError, ParamsError)):
            for part in ("vae", "text_encoder", "tokenizer"):
                read_layout(pipeline, sound)
                (load_plain if part == "tokenizer" else load_module)(sound, part)
        assert says in failures(check_pipeline(sound))
    (pipeline / "model_index.json").write_text(json.dumps(index))
    (pipeline / "tokenizer_2" / "tokenizer.json").unlink()
    assert "tokenizer_2: no vocabulary" in failures(check_pipeline(sound))


@pytest.mark.parametrize(
    ("section", "changes", "says"),
    [
        ("lora", {"blocks": "7..40"}, "40 is out of range -> valid: 0..18"),
        ("arms", {"other": {"kind": "graph_lora", "blocks": "[17..20]"}}, "arms.other.blocks: block 19, 20 is out of range"),
        ("judge", {"judges": {"clip": {"kind": "open_clip", "model": "local-dir:nowhere"}}, "headline": "clip"},
         "local-dir:nowhere: no such folder"),
        ("graph_encoder", {"tower": "local-dir:nowhere", "files": "nowhere"}, "graph_encoder.tower"),
    ],
)  # fmt: skip
def test_parameters_that_a_stage_refuses(tmp_path, repo_root, monkeypatch, section, changes, says):
    monkeypatch.chdir(repo_root)
    assert failures(check_parameters(Path("params.yaml"), load_all(Path("params.yaml")))) == ""
    sections = yaml.safe_load(Path("params.yaml").read_text())
    sections[section] |= changes
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(sections))
    assert says in failures(check_parameters(path, load_all(path)))


def test_a_shared_cache_that_this_user_cannot_write_is_said(tmp_path, monkeypatch):
    """Access is the system's answer, which is always yes for the superuser of a container."""
    root = repository(tmp_path)
    (tmp_path / "store").mkdir()
    (root / "weights.bin").write_bytes(b"four")
    states = root / ".dvc" / "stage-state"
    for name in ("saliency-0", "train_lora-1"):
        (states / name).mkdir(parents=True)
    assert failures(check_dvc(root)) == ""
    locked = {root / ".dvc"}
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) not in locked)
    assert f"{root / '.dvc'}: not writable by this user" in failures(check_dvc(root))
    locked = {states / "train_lora-1"}
    text = failures(check_dvc(root))
    assert "1 working states of another user (first: train_lora-1)" in text and "chmod -R g+rwX" in text
