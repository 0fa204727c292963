"""Stages as they run against what dvc.yaml and the import closure say of them: what they import, and which knobs they read."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from sgpipe.cli import app
from sgpipe.params.load import SECTIONS
from sgpipe.runs.closure import VIEWS, import_closure
from sgpipe.runs.code import stage_modules
from tests.stages.test_caches import set_params
from tests.stages.test_pipeline import clone, environment
from tests.tiny import DOUBLE, SIDE, SINGLE, TOKENS, curated_triples, write_curated, write_pipeline

ROOT = Path(__file__).resolve().parents[2]
KINDS = {path.relative_to(ROOT).as_posix() for path in (ROOT / "sgpipe/arms/kinds").glob("*.py")}
DEFINITIONS = KINDS.union(*(import_closure(at.partition(":")[0], ROOT).files for at in SECTIONS.values()))
"""The files that define the sections of params.yaml, and what an arm of each kind may say."""
NOT_RESULTS = {"compute", "tracking"}
"""Sections that say how or where a stage runs; they never change a result, so no stage depends on them."""
IN_DIGEST = "data.relations"
"""Names a file of relation classes whose bytes are in the digest of each stage that reads them (`sgpipe.runs.code`)."""
RECORDED = """
import atexit, json, runpy, sys
from pathlib import Path

from sgpipe.params import load

read, checking = set(), []
plain, check = load.decode, load.check

def decode(section, raw, kind, source):
    fields = frozenset(getattr(kind, "__struct_fields__", ("items", "keys", "values")))
    def recording(self, name):
        if name in fields and not checking:
            read.add(f"{section}.{name}")
        return object.__getattribute__(self, name)
    checking.append(section)
    try:
        found = plain(section, raw, kind, source)
    finally:
        checking.pop()
    kind.__getattribute__ = recording
    return found

def unrecorded(sections, source):
    checking.append("all")
    try:
        check(sections, source)
    finally:
        checking.pop()

def keep():
    modules = [name for name, module in sys.modules.items() if name.split(".")[0] in ("sgpipe", "stages")]
    files = {str(Path(sys.modules[name].__file__).resolve().relative_to(Path.cwd())) for name in modules}
    Path(sys.argv[0]).with_suffix(".json").write_text(json.dumps({"files": sorted(files), "read": sorted(read)}))

load.decode, load.check = decode, unrecorded
out, module, *arguments = sys.argv[1:]
sys.argv = [out, *arguments]
atexit.register(keep)
runpy.run_module(module, run_name="__main__", alter_sys=False)
"""
"""Runs a stage, and writes which files of ours it imported and which knobs of each section its code touched."""
COMMANDS = {
    "canonicalize": ("stages.canonicalize", "--workers", "1"),
    "curate": ("stages.curate",),
    "negatives": ("stages.negatives",),
    "resolve": ("stages.resolve",),
    "sample_base": ("stages.sample_images", "--arm", "base"),
    "headline": ("stages.headline",),
}


def body(definition: dict[str, Any]) -> dict[str, Any]:
    """The part of a stage's definition that holds cmd, deps and params."""
    return definition.get("do", definition)


def stages() -> dict[str, dict[str, Any]]:
    return yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


def module_of(definition: dict[str, Any]) -> str:
    """The module that a stage's command runs with `python -m`."""
    return next(word for word in str(body(definition)["cmd"]).split() if word.startswith("stages."))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone with a tiny pipeline and few annotations."""
    root = clone(tmp_path_factory.mktemp("recorded") / "repository", ROOT / "tests/data/visual_genome/v1_4")
    write_pipeline(root / "models/tiny")
    shutil.copytree(ROOT / "metrics", root / "metrics")
    backbone = {"double_blocks": DOUBLE, "single_blocks": SINGLE, "resolution": SIDE, "max_sequence_length": TOKENS}
    set_params(
        root,
        backbone={"model": "models/tiny", "files": "models/tiny", **backbone},
        maps={"groups": {"middle": "0..1"}},
        lora={"blocks": "1..2"},
        sgdiff={"checkpoint": "models/tiny"},
        arms={"sgdiff": {"kind": "sgdiff"}},
        train={
            "compile": False,
            "losses": {"margin": {"weight": 0}, "saliency": {"weight": 1, "group": "middle"}},
            "times": {"steps": 1},
            "validation": {"steps": 1},
        },
        evaluate={"seeds": [0], "steps": 1, "batch_size": 8},
        compute={"device": "cpu", "threads": 1},
        tracking={"enabled": False},
    )
    return root


@pytest.fixture(scope="module")
def recorded(root: Path) -> dict[str, dict[str, list[str]]]:
    """Files and knobs by stage, of a tiny run of each."""
    top, found = root.parent, {}
    for name, words in COMMANDS.items():
        if name == "resolve":  # the few annotations of the tests give no val triples
            write_curated(root / "outputs/curated", curated_triples(12, "val"), curated_triples(0, "maps"))
            record(root, words=("stages.negatives",), out=top / "again")
        found[name] = record(root, words, top / name)
    return found


def record(root: Path, words: tuple[str, ...], out: Path) -> dict[str, list[str]]:
    """Run a stage in `root`; what it imported and read."""
    done = subprocess.run(
        [sys.executable, "-c", RECORDED, str(out), *words],
        cwd=root, capture_output=True, text=True, env=environment(), check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(out.with_suffix(".json").read_text())


@pytest.mark.parametrize("name", COMMANDS)
def test_what_a_stage_imports_is_in_its_closure(recorded: dict[str, Any], name: str) -> None:
    """What is imported beyond it would be code whose edit reruns nothing; `sgpipe.tracking` is a view, and all sections are read to
    be checked against one another.
    """
    known = import_closure(COMMANDS[name][0], ROOT).files
    views = tuple(f"{view.replace('.', '/')}{end}" for view in VIEWS for end in (".py", "/"))
    imported = {file for file in recorded[name]["files"] if not file.startswith(views)} - DEFINITIONS
    assert len(imported) > 5
    assert imported <= set(known)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_knobs_that_a_stage_reads_are_its_params(recorded: dict[str, Any], name: str) -> None:
    """And the other way round: a section of which it touches nothing is none."""
    listed = [str(key) for key in body(stages()[name])["params"]]
    read = {knob for knob in recorded[name]["read"] if knob.split(".")[0] not in NOT_RESULTS} - {IN_DIGEST}
    assert read
    for knob in read:
        assert knob in listed or knob.split(".")[0] in listed, knob
    for key in listed:
        assert any(knob == key or knob.startswith(f"{key}.") for knob in read), key


def test_another_arm_changes_no_byte_of_the_base(root: Path, recorded: dict[str, Any]) -> None:
    images = root / "outputs/images/base"
    before = {path.name: path.read_bytes() for path in images.iterdir()}
    set_params(root, arms={"more": {"kind": "graph_tokens"}})
    set_params(root, evaluate={"adapters": {"graph": "graphs", "more": "graphs", "text_only": "empty"}})
    shutil.rmtree(images)
    assert record(root, COMMANDS["sample_base"], root.parent / "again") == recorded["sample_base"]
    assert before and {path.name: path.read_bytes() for path in images.iterdir()} == before


def test_every_stage_is_in_the_pipeline_and_depends_on_its_own_code() -> None:
    described = stages()
    assert set(stage_modules(ROOT)) == {module_of(definition) for definition in described.values()}
    for name, definition in described.items():
        own = f"outputs/code/{module_of(definition).removeprefix('stages.')}.json"
        assert name == "code" or own in body(definition)["deps"], name
        assert not any(str(dep).endswith(".py") for dep in body(definition)["deps"]), name


def test_what_the_digests_are_made_from_is_a_dependency_of_code() -> None:
    """Of every closure the packages, and the files that say what is installed and what is brought by entry points."""
    packages = {file.split("/")[0] for name in stage_modules(ROOT) for file in import_closure(name, ROOT).files}
    assert {*packages, "requirements.lock", "pyproject.toml", "${data.relations}"} == set(stages()["code"]["deps"])


def test_params_are_sections_and_knobs_that_there_are() -> None:
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    for name, definition in stages().items():
        for key in body(definition).get("params", []):
            section, _, knob = str(key).partition(".")
            assert section in SECTIONS and section not in NOT_RESULTS, (name, key)
            assert not knob or knob.split(".")[0] in params[section], (name, key)


def test_dvc_yaml_is_a_page() -> None:
    """A newcomer reads the experiment in it."""
    assert len((ROOT / "dvc.yaml").read_text().splitlines()) <= 450


def test_the_stages_fit_a_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    done = CliRunner().invoke(app, ["dag"])
    lines = done.stdout.splitlines()
    assert done.exit_code == 0 and len(lines) <= 40 and max(map(len, lines)) <= 110
    assert {line.split()[0] for line in lines} == set(stages()) - {"code", "study", "train_sgdiff"}, (
        "by default no arm is studied, no twin trained"
    )
    assert "judge                   ← sample_base, sample_images" in lines, "what others wait for is left out"


def test_by_default_training_waits_for_neither_maps_probes_nor_encoder() -> None:
    """The knobs that may name their outputs name inert files, which are the same as null."""
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "repro", "--dry", "--force", "train_lora@graph"],
        cwd=ROOT, capture_output=True, text=True, env=environment(), check=False,
    )  # fmt: skip
    ran = {line.split("'")[1] for line in done.stdout.splitlines() if line.startswith("Running stage")}
    assert "train_lora@graph" in ran and "resolve" in ran, done.stderr
    assert not {name for name in ran if name.startswith(("saliency", "probe", "graph_encoder"))}
