"""The pipeline as DVC runs it, in a clone: real annotations in, the same bytes again, nothing rerun without a reason."""

import importlib
import json
import os
import subprocess
import sys
from contextlib import chdir
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import typer
import yaml

from sgpipe.graphs.config import Curate
from sgpipe.params.load import read_section, to_builtins
from sgpipe.runs.state import config_hash
from tests.documented import copied

ROOT = Path(__file__).resolve().parents[2]
FIRST_STAGES = ("canonicalize", "curate", "negatives")
COPIED = (
    "sgpipe", "sgworld", "stages",
    "presets/unused", "dvc.yaml", "requirements.lock", "pyproject.toml", ".dvc", ".dvcignore", ".gitignore",
)  # fmt: skip


def environment() -> dict[str, str]:
    """That of a user's shell in which this Python comes first."""
    found = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for name in ("PYTHONPATH", "MLFLOW_TRACKING_URI", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV"):
        found.pop(name, None)
    return found


def test_the_artifact_is_the_adapter_of_an_arm_of_the_default() -> None:
    """What `dvc artifacts` finds is written by a stage, whatever blocks or generator params.yaml names."""
    pipeline, params = (yaml.safe_load((ROOT / name).read_text(encoding="utf-8")) for name in ("dvc.yaml", "params.yaml"))
    found = pipeline["artifacts"]["graph-adapter"]
    stage, arm, folder = Path(found["path"]).parts[-3:]
    written = [next(iter(each)) for each in pipeline["stages"]["train_lora"]["do"]["outs"]]
    assert f"outputs/{stage}/${{key}}" in written
    assert arm in params["arms"] and folder == "adapter" and found["type"] == "model"
    assert params["lora"]["blocks"] not in found["desc"] and params["backbone"]["model"] not in found["desc"]


def run(root: Path, *command: str) -> str:
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def command(root: Path, module: str, *arguments: str) -> None:
    """Run a stage in `root` as `python -m` does, in this process: most of a small stage's time is the start of a Python."""
    app = typer.Typer()
    app.command()(importlib.import_module(module).main)
    with chdir(root):
        app(list(arguments), standalone_mode=False)


def clone(target: Path, data: Path) -> Path:
    """The working tree's code in a fresh repository whose parameters name `data` and take what triples there are."""
    copied(target, *COPIED)
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["data"]["root"] = str(data)
    params["curate"]["allow_short"] = True
    params["curate"]["quality"]["min_side"] = 4
    (target / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    run(target, "git", "init", "-q")
    author = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    run(target, "git", *author, "commit", "-q", "--allow-empty", "-m", "start")
    return target


def dvc(root: Path, *arguments: str) -> str:
    return run(root, sys.executable, "-m", "dvc", *arguments)


@pytest.mark.slow
def test_real_annotations_go_through_the_pipeline(reference_dir: Path, tmp_path: Path) -> None:
    """Visual Genome v1.4: known records by id, conservation, and a second run that has nothing to do."""
    root = clone(tmp_path / "a folder", reference_dir / "data" / "vg_real" / "v1_4")
    dvc(root, "repro", *FIRST_STAGES)
    counts = json.loads((root / "metrics" / "canonicalize.json").read_text())
    raw = json.loads((reference_dir / "data/vg_real/v1_4/relationships.json").read_text())
    assert counts["read"] == sum(len(image["relationships"]) for image in raw)
    assert counts["read"] == counts["kept"] + counts["rejected"]
    assert counts["kept"] == sum(counts["by_class"].values())
    assert counts["rejected"] == sum(counts["by_reason"].values())
    relations = {row["relationship_id"]: row for row in pq.read_table(root / "outputs/canonical/relations.parquet").to_pylist()}
    first = next(r for image in raw for r in image["relationships"] if r["predicate"] == "ON")
    kept = relations[first["relationship_id"]]
    assert (kept["predicate"], kept["raw_predicate"]) == ("on", "ON")
    assert kept["subject_id"] == first["subject"]["object_id"]
    assert "Data and pipelines are up to date." in dvc(root, "status", *FIRST_STAGES)
    assert "Data and pipelines are up to date." in dvc(root, "repro", *FIRST_STAGES)

    before = {path.name: path.read_bytes() for path in (root / "outputs/canonical").iterdir()}
    dvc(root, "repro", "--single-item", "--force", "canonicalize")
    assert {path.name: path.read_bytes() for path in (root / "outputs/canonical").iterdir()} == before


@pytest.mark.slow
def test_a_change_reruns_only_what_reads_it(tmp_path: Path) -> None:
    """`exp run -S` of a seed of `curate` leaves canonicalize alone; a tracking or compute knob reruns nothing."""
    root = clone(tmp_path, ROOT / "tests" / "data" / "visual_genome" / "v1_4")
    dvc(root, "repro", *FIRST_STAGES)
    params = yaml.safe_load((root / "params.yaml").read_text())
    params["tracking"]["experiment"] = "other"
    params["compute"]["device"] = "cpu"
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    assert "up to date" in dvc(root, "status", *FIRST_STAGES)
    changed = dvc(root, "exp", "run", "-n", "other-seed", "-S", "curate.seed=5", *FIRST_STAGES)
    assert "Stage 'canonicalize' didn't change" in changed
    assert "Running stage 'curate'" in changed
    written = yaml.safe_load((root / "metrics/curate.json").read_text())
    assert written["config"] == config_hash(to_builtins(read_section(root / "params.yaml", "curate", Curate)))
    assert read_section(root / "params.yaml", "curate", Curate).seed == 5


@pytest.mark.slow
def test_a_stage_that_is_refused_says_so_in_one_line(tmp_path: Path) -> None:
    root = clone(tmp_path, tmp_path / "nowhere")
    done = subprocess.run([sys.executable, "-m", "stages.canonicalize"], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "nowhere" in lines[0]
    assert "Traceback" not in done.stderr
