"""The stages of the probes as commands: the same bytes whole, killed and continued, or with other workers; then the table."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image

from sgpipe.datasets.tables import TRIPLES
from sgpipe.errors import ParamsError, SgpipeError
from sgpipe.graphs.negatives import read_confusions
from sgpipe.graphs.scene_graph import SceneGraph
from sgpipe.probes.noise_aware import load_noise_aware
from sgpipe.probes.probe import load_probe
from sgpipe.relations.predicates import concepts, neutral_prompt, relational_prompt
from tests.probes.world import triples, write_generated, write_noised
from tests.stages.test_caches import TRIPLES as OTHERS
from tests.stages.test_caches import copied, set_params, small_repository, stage
from tests.stages.test_pipeline import command
from tests.tiny import graph_columns, write_curated

pytestmark = pytest.mark.slow
SMALL = {
    "epochs": {"mlp": 6, "cnn": 2},
    "features": ["saliency", "diff"],
    "seeds": 2,
    "shuffled_seeds": 1,
    "folds": 4,
    "resamples": 100,
    "noise_aware": {"probe": "mlp", "feature": "concat", "epochs": 3, "conditions": ["relational", "wrong"]},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The made-up world's maps for two groups, and a prompt cache that knows its names."""
    root = small_repository(tmp_path_factory.mktemp("probes"))
    table = triples(24)
    rows = []
    for row in table.to_pylist():
        said = row["subject"], row["predicate"], row["object"]
        rows.append(
            {**dict.fromkeys(TRIPLES.names, 1.0), **row, "split": "maps", "relationship_id": 1,
             "prompt": relational_prompt(*said), "neutral_prompt": neutral_prompt(said[0], said[2]),
             "concepts": list(concepts(*said)), "source": "annotated", **graph_columns(SceneGraph.of(*said))}
        )  # fmt: skip
    write_curated(root / "outputs/curated", OTHERS, pa.Table.from_pylist(rows, schema=TRIPLES))
    set_params(root, maps={"groups": {"early": "0", "late": "1..2"}}, probes=SMALL)
    stage(root, "prompts")
    for folder in ("saliency", "saliency_noised"):
        (root / "outputs" / folder).mkdir()
    for seed, group in enumerate(("early", "late")):
        write_generated(table, root / f"outputs/saliency/{group}.parquet", seed)
        write_noised(table, root / f"outputs/saliency_noised/{group}.parquet", "image", seed)
    return root


@pytest.fixture
def world(made: Path, tmp_path: Path) -> Path:
    """`made` for one test."""
    return copied(made, tmp_path)


def probe(root: Path, group: str) -> None:
    command(root, "stages.probe", group)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_killed_or_with_more_workers_the_bytes_are_the_same(world: Path) -> None:
    out = world / "outputs/probes/late"
    probe(world, "late")
    whole = contents(out)
    assert set(whole) == {"table.json"} | {f"{of}/probe.{end}" for of in ("best", "noise_aware") for end in ("json", "safetensors")}
    shutil.rmtree(out)
    states = world / ".dvc/stage-state"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    process = subprocess.Popen(
        [sys.executable, "-m", "stages.probe", "late"], cwd=world, env=environment, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while process.poll() is None and len(list(states.glob("*/[a-z]*.safetensors"))) < 2:
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and not out.exists()
    first, second, *_ = sorted(states.glob("*/[a-z]*.safetensors"))
    first.write_bytes(b"")
    second.write_bytes(second.read_bytes()[:-9])
    (first.parent / ".half.safetensors.7.tmp").write_bytes(b"half")
    set_params(world, compute={"threads": 2})
    probe(world, "late")
    assert contents(out) == whole
    assert [path for path in states.iterdir() if path.is_dir()] == []


def test_the_table_follows_the_groups(world: Path) -> None:
    for group in ("early", "late"):
        probe(world, group)
    command(world, "stages.probe_table")
    found = json.loads((world / "metrics/probes.json").read_text())
    assert set(found["cells"]) == {"mlp", "cnn"} and set(found["cells"]["mlp"]) == {"saliency", "diff"}
    assert set(found["cells"]["cnn"]["diff"]) == {"early", "late"} == set(found["noise_aware"])
    assert found["noise_aware"]["late"]["conditions"] == ["relational", "wrong"]
    read_confusions(world / "outputs/confusions/confusions.json")
    for group in ("early", "late"):
        _, facts = load_probe(world / f"outputs/probes/{group}/best")
        assert facts["group"] == group
        assert load_noise_aware(world / f"outputs/probes/{group}/noise_aware").times.tolist() == [0.5, 0.75]
    names = {"mlp", "cnn", "selectivity", "noised", "table", "confusion_early", "confusion_late"}
    assert {path.stem for path in (world / "plots/probes").iterdir()} == names
    for path in (world / "plots/probes").iterdir():
        with Image.open(path) as image:
            assert len(image.convert("L").getcolors() or range(300)) > 20


def test_what_cannot_be_fitted_is_refused_in_one_line(world: Path) -> None:
    with pytest.raises(ParamsError, match="valid: early, late"):
        probe(world, "lowest")
    for changes, says in (
        ({"folds": 24}, "probes.folds is 24"),
        ({"folds": 4, "noise_aware": {**SMALL["noise_aware"], "epochs": 0}}, "probes.noise_aware.epochs"),
    ):
        set_params(world, probes=changes)
        with pytest.raises(SgpipeError) as refused:
            probe(world, "late")
        assert says in str(refused.value) and "\n" not in str(refused.value)
    done = subprocess.run([sys.executable, "-m", "stages.probe", "late"], cwd=world, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("error: ")]) == 1
