"""The cache stages as commands: the same bytes whole, killed and continued, or from two processes; what DVC reruns."""

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
import yaml

from sgpipe.backbones.config import Backbone
from sgpipe.backbones.families import open_tokenizers
from sgpipe.backbones.latent_cache import LatentCache
from sgpipe.backbones.prompt_cache import PromptCache
from sgpipe.datasets.tables import NEGATIVES, write_table
from sgpipe.params.load import read_section
from sgpipe.relations.predicates import relational_prompt
from tests.stages.test_pipeline import clone, command, dvc, run
from tests.tiny import DOUBLE, SIDE, SINGLE, TOKENS, curated_triples, edit_json, write_curated, write_images, write_pipeline

pytestmark = pytest.mark.slow
TRIPLES, MAP_TRIPLES = curated_triples(30, "train"), curated_triples(60, "maps", 20)
COMMANDS = {
    "prompts": ("stages.cache_prompts",),
    "negative_prompts": (
        "stages.cache_prompts", "--negatives", "outputs/negatives/negatives.parquet",
        "--out", "outputs/negative_prompts", "--metrics", "metrics/cache_negative_prompts.json",
    ),
    "latents": ("stages.cache_latents",),
}  # fmt: skip


def set_params(root: Path, **sections: dict) -> None:
    params = yaml.safe_load((root / "params.yaml").read_text())
    for name, changes in sections.items():
        params[name] |= changes
    (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """`small_repository` of a test's own."""
    return small_repository(tmp_path)


def small_repository(folder: Path) -> Path:
    """A clone with a tiny pipeline, images (one damaged) and curated triples of its own."""
    root = clone(folder / "repository", folder / "data")
    shutil.copytree(Path(__file__).resolve().parents[2] / "presets", root / "presets", dirs_exist_ok=True)
    write_pipeline(root / "models" / "tiny")
    write_curated(root / "outputs" / "curated", TRIPLES, MAP_TRIPLES)
    write_images(folder / "data", pa.concat_tables([TRIPLES, MAP_TRIPLES]))
    (folder / "data" / "VG_100K" / "25.png").write_bytes(b"cut off")
    rows = TRIPLES.select(["triple_id", "subject", "predicate", "object"]).to_pylist()
    swapped = [{**row, "kind": "swap", "changed": 0, "subject": row["object"], "object": row["subject"]} for row in rows]
    swapped = [{**row, "prompt": relational_prompt(row["subject"], row["predicate"], row["object"])} for row in swapped]
    write_table(pa.Table.from_pylist(swapped, schema=NEGATIVES), root / "outputs/negatives/negatives.parquet")
    set_params(
        root,
        backbone={
            "model": "models/tiny",
            "files": "models/tiny",
            "double_blocks": DOUBLE,
            "single_blocks": SINGLE,
            "resolution": SIDE,
            "max_sequence_length": TOKENS,
        },
        cache_prompts={"batch_size": 4, "shard_size": 8},
        cache_latents={"batch_size": 4, "shard_size": 8},
        compute={"device": "cpu", "threads": 1},
        tracking={"enabled": False},
    )
    return root


def copied(made: Path, folder: Path) -> Path:
    """A copy of a module's repository for one test; images stay where they are, which params.yaml names."""
    return Path(shutil.copytree(made, folder / "repository", symlinks=True))


def stage(root: Path, name: str) -> None:
    """Run a stage: in this process, or by its command where several processes share it."""
    if yaml.safe_load((root / "params.yaml").read_text())["compute"].get("launch"):
        run(root, sys.executable, "-m", *COMMANDS[name])
    else:
        command(root, *COMMANDS[name])


def started(root: Path, name: str) -> None:
    """Run a stage by its command: for bytes that are compared with those of a stage that was, and could be killed."""
    run(root, sys.executable, "-m", *COMMANDS[name])


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def killed(root: Path, name: str) -> None:
    """Run a stage and kill it, with all it started, as soon as two of its shards are finished."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    process = subprocess.Popen(
        [sys.executable, "-m", *COMMANDS[name]],
        cwd=root,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    states = root / ".dvc" / "stage-state"
    while process.poll() is None and len(list(states.glob("*/[a-z]*-0*"))) < 2:
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


@pytest.mark.parametrize("name", ["prompts", "latents"])
def test_killed_or_dealt_over_processes_the_bytes_are_the_same(root: Path, name: str) -> None:
    out, states = root / "outputs" / name, root / ".dvc" / "stage-state"
    started(root, name)
    whole, metrics = files(out), (root / f"metrics/cache_{name}.json").read_bytes()
    shutil.rmtree(out)
    killed(root, name)
    left = list(states.glob("*/[a-z]*-0*"))
    assert left and not out.exists()
    started(root, name)
    assert files(out) == whole
    assert [path.name for path in states.iterdir() if path.is_dir()] == []
    shutil.rmtree(out)
    set_params(root, compute={"launch": "torchrun --nproc-per-node 2"})
    started(root, name)
    assert files(out) == whole
    assert (root / f"metrics/cache_{name}.json").read_bytes() == metrics
    if name == "prompts":  # both are dealt over processes by the same code: killed there once is enough
        return
    killed(root, name)
    set_params(root, compute={"launch": None})
    started(root, name)
    assert files(out) == whole


def test_the_caches_serve_every_triple(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("prompts", "negative_prompts", "latents"):
        stage(root, name)
    monkeypatch.chdir(root)
    backbone = read_section(root / "params.yaml", "backbone", Backbone)
    cache = PromptCache([Path("outputs/prompts"), Path("outputs/negative_prompts")], backbone)
    said = pa.concat_tables([pa.parquet.read_table(f"outputs/{name}/prompts.parquet") for name in ("prompts", "negative_prompts")])
    assert cache.get(said["prompt"].to_pylist()).states.shape == (said.num_rows, TOKENS, 24)
    cache.get([""])
    for triple in MAP_TRIPLES.to_pylist():
        assert cache.concepts(triple["concepts"])[1].any(dim=1).all()
    latents = LatentCache(Path("outputs/latents"), backbone)
    both = pa.concat_tables([TRIPLES, MAP_TRIPLES])
    kept = latents.available(both)
    assert set(both["image_id"].to_pylist()) - set(kept["image_id"].to_pylist()) == {25}
    assert latents.latents(kept["triple_id"].to_pylist()).isfinite().all()
    counts = json.loads(Path("metrics/cache_latents.json").read_text())
    assert counts["rejected_by_reason"] == {"image unreadable": counts["triples"]["rejected"]}
    prompts = json.loads(Path("metrics/cache_prompts.json").read_text())
    asked = said["prompt"].to_pylist()[: -TRIPLES.num_rows]
    assert prompts["prompts"] == len({"", *asked})
    assert prompts["encoder"] != counts["encoder"]
    tokenizers = open_tokenizers(backbone)
    long = [text for text in set(asked) if len(tokenizers.t5(text).input_ids) > TOKENS]
    assert prompts["truncated"] == {"texts": len(long), "in_names_or_relation": 0} and long


CACHES = ("cache_prompts", "cache_latents")


def test_dvc_reruns_a_cache_only_for_its_own_encoder(root: Path) -> None:
    dvc(root, "repro", "--single-item", "code", *CACHES)
    assert "up to date" in dvc(root, "status", *CACHES)
    edit_json(root / "models/tiny/transformer/config.json", note="retrained")
    set_params(root, compute={"threads": 2, "launch": "torchrun --nproc-per-node 2"})
    assert "up to date" in dvc(root, "status", *CACHES)
    edit_json(root / "models/tiny/vae/config.json", note="retrained")
    changed = dvc(root, "status", *CACHES)
    assert "cache_latents" in changed and "prompts" not in changed
    edit_json(root / "models/tiny/text_encoder_2/config.json", note="retrained")
    assert "cache_prompts" in dvc(root, "status", *CACHES)


def test_a_hub_id_reaches_the_stage_which_asks_for_its_weights(root: Path) -> None:
    """DVC finds all that it depends on; the one thing missing is what the stage itself names."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    set_params(root, backbone={"model": "someone/flux", "revision": commit, "files": "presets/hub"})
    dvc(root, "repro", "--single-item", "code")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(root / "hub")}
    environment.pop("PYTHONPATH", None)
    for name in CACHES:
        done = subprocess.run(
            [sys.executable, "-m", "dvc", "repro", "--single-item", name],
            cwd=root,
            env={**environment, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode != 0
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and "hf download someone/flux" in errors[0], done.stderr
        assert "missing data" not in done.stderr
