"""The training as a stage: SIGKILL and resume, in another workspace too, one trainer at a time, no retraining for spelling."""

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
import yaml
from msgspec import to_builtins
from safetensors.torch import load

from sgpipe.errors import ParamsError
from tests.stages.test_caches import set_params
from tests.stages.test_pipeline import clone, command, dvc, run
from tests.tiny import DOUBLE, SIDE, SINGLE, TOKENS
from tests.training.world import tiny_train, write_world

pytestmark = pytest.mark.slow
STAGE = ("stages.train_lora", "--arm", "graph")
COMMAND = (sys.executable, "-m", *STAGE)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone with a tiny pipeline, its caches and parameters, and the resolved arms."""
    root = clone(tmp_path_factory.mktemp("lora") / "repository", tmp_path_factory.mktemp("data"))
    shutil.copytree(Path(__file__).resolve().parents[2] / "presets", root / "presets", dirs_exist_ok=True)
    write_world(root)
    backbone = {
        "model": "models/tiny", "files": "models/tiny", "double_blocks": DOUBLE, "single_blocks": SINGLE,
        "resolution": SIDE, "max_sequence_length": TOKENS,
    }  # fmt: skip
    train = to_builtins(tiny_train(epochs=8, keep_epochs=(2,), ema_decay=0.9))
    train["validation"]["images"] = 2
    lora = {"blocks": "1..2", "rank": 4, "alpha": 4}
    set_params(
        root, backbone=backbone, lora=lora, train=train, compute={"device": "cpu", "threads": 1}, tracking={"enabled": False},
        maps={"groups": {"middle": "0..1"}},
    )  # fmt: skip
    params = yaml.safe_load((root / "params.yaml").read_text())
    for later in ("evaluate", "ablation"):  # their arms and epochs would have to follow every change below
        del params[later]
    (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    command(root, "stages.resolve")
    return root


@pytest.fixture(autouse=True)
def as_made(made: Path) -> Iterator[None]:
    """Parameters and arms are after every test what they were: workers take tests from one another, so any order occurs."""
    kept = {path: path.read_bytes() for path in (made / "params.yaml", *(made / "outputs/resolved").iterdir())}
    yield
    for path in set((made / "outputs/resolved").iterdir()) - kept.keys():
        path.unlink()
    for path, content in kept.items():
        path.write_bytes(content)


def results(root: Path) -> dict[str, bytes]:
    folder = root / "outputs/lora/graph"
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    written = [*(root / "plots/lora/graph").glob("*.csv"), root / "metrics/lora/graph.json"]
    return found | {path.name: path.read_bytes() for path in written}


def start(root: Path) -> subprocess.Popen[str]:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.Popen(
        COMMAND, cwd=root, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip


def killed(root: Path, checkpoints: int) -> None:
    """Start the stage and kill it as soon as it has come past so many checkpoints."""
    process = start(root)
    states = root / ".dvc" / "stage-state"
    while process.poll() is None:
        numbers = [int(path.stem.split("-")[1]) for path in states.glob("train_lora-graph-*/step-*.pt")]
        if numbers and max(numbers) >= 3 * checkpoints:
            break
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


@pytest.fixture(scope="module")
def whole(made: Path) -> dict[str, bytes]:
    run(made, *COMMAND)
    found = results(made)
    assert {"adapter/adapter.json", "epoch-2/graph_tokens.safetensors", "controls.csv", "training.csv"} <= found.keys()
    assert "samples/step-000040.png" in found
    figures = json.loads((made / "metrics/lora/graph.json").read_text())
    losses = {f"val_loss_{name}" for name in ("base", "graph", "empty", "shuffled", "swapped")}
    assert losses | {"preference_accuracy", "steps", "config"} <= figures.keys()
    assert figures["steps"] == 40
    assert not {"seconds", "seconds_per_step", "data_share"} & figures.keys()
    return found


def test_what_a_training_took_and_what_made_it_lie_where_nothing_depends_on_them(made: Path, whole: dict[str, bytes]) -> None:
    timings = json.loads((made / "outputs/timings/train_lora-graph.json").read_text())
    assert timings["seconds"] > 40 * timings["seconds_per_step"] > 0 and 0 < timings["data_share"] < 1
    provenance = json.loads((made / "outputs/provenance/train_lora-graph.json").read_text())
    assert provenance["commit"] == run(made, "git", "rev-parse", "HEAD").strip()
    assert provenance["libraries"]["torch"] == version("torch") and provenance["device"] == "cpu"
    log = [json.loads(line) for line in (made / "outputs/timings/train_lora-graph.jsonl").open()]
    assert [line["step"] for line in log] == [10, 20, 30, 40]
    assert all(line["samples_per_second"] > 0 and line["peak_memory_bytes"] > 0 for line in log)
    described = (made / "dvc.yaml").read_text()
    assert "outputs/timings" not in described and "outputs/provenance" not in described


def test_at_another_commit_the_same_training_gives_the_same_bytes(made: Path, whole: dict[str, bytes]) -> None:
    before = run(made, "git", "rev-parse", "HEAD").strip()
    author = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    run(made, "git", *author, "commit", "--quiet", "--allow-empty", "-m", "another")
    run(made, *COMMAND)
    assert results(made) == whole and before.encode() not in b"".join(whole.values())
    provenance = json.loads((made / "outputs/provenance/train_lora-graph.json").read_text())
    assert provenance["commit"] == run(made, "git", "rev-parse", "HEAD").strip() != before


@pytest.mark.parametrize("checkpoints", [1, 5])
def test_killed_it_goes_on_and_ends_with_the_same_bytes(made: Path, whole: dict[str, bytes], checkpoints: int) -> None:
    shutil.rmtree(made / "outputs/lora")
    killed(made, checkpoints)
    assert not (made / "outputs/lora").exists()
    run(made, *COMMAND)
    assert results(made) == whole
    assert [path for path in (made / ".dvc/stage-state").iterdir() if path.is_dir()] == []


def test_another_workspace_of_the_repository_goes_on(made: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    """What `dvc exp run --temp` does: the same files elsewhere, with the same cache."""
    shutil.rmtree(made / "outputs/lora")
    killed(made, 2)
    other = shutil.copytree(made, tmp_path / "temp", ignore=shutil.ignore_patterns("stage-state"))
    dvc(other, "cache", "dir", "--local", str(made / ".dvc" / "cache"))
    run(other, *COMMAND)
    assert results(other) == whole
    assert not (other / ".dvc/stage-state").exists()


def test_two_processes_train_what_one_does(made: Path, whole: dict[str, bytes]) -> None:
    """Up to the order in which gradients are summed; every process takes its share of each batch."""
    set_params(made, compute={"launch": "torchrun --nproc-per-node 2"})
    try:
        run(made, *COMMAND)
    finally:
        set_params(made, compute={"launch": None})
    norms = [
        [float(row["gradient"]) for row in csv.DictReader(io.StringIO(text.decode()))]
        for text in (whole["training.csv"], (made / "plots/lora/graph/training.csv").read_bytes())
    ]  # of the gradients before AdamW, which would hide a sum in place of the mean
    assert len(norms[0]) == 4 and norms[1] == pytest.approx(norms[0], rel=0.05)
    for name in ("graph_tokens.safetensors", "pytorch_lora_weights.safetensors"):
        one, two = (load(whole[f"adapter/{name}"]), load((made / "outputs/lora/graph/adapter" / name).read_bytes()))
        for key, value in one.items():
            torch.testing.assert_close(two[key], value, atol=2e-3, rtol=2e-2)


def test_a_second_trainer_is_kept_out(made: Path, whole: dict[str, bytes]) -> None:
    first = start(made)
    states = made / ".dvc" / "stage-state"
    while first.poll() is None and not list(states.glob("train_lora-graph-*/step-*.pt")):
        time.sleep(0.01)
    os.killpg(first.pid, signal.SIGSTOP)
    second = subprocess.run(COMMAND, cwd=made, capture_output=True, text=True, check=False)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    assert first.returncode == -signal.SIGKILL and second.returncode == 2
    assert "another process is running the same stage" in second.stderr


def test_a_spelling_retrains_nothing_and_a_meaning_does(made: Path) -> None:
    def status(blocks: object, **others: object) -> str:
        params = yaml.safe_load((made / "params.yaml").read_text())
        params["lora"] |= {"blocks": blocks, **others}
        (made / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
        command(made, "stages.resolve")
        return (made / "outputs/resolved/graph.json").read_text()

    first = status("1..2")
    assert status(["1..2"]) == status([1, 2]) == status("[1,2]") == first
    set_params(made, arms={"more": {"kind": "graph_tokens"}})
    assert status("1..2") == first
    set_params(made, arms={"graph": {"kind": "graph_lora", "blocks": "1..2"}})
    assert status("0..1") == first, "what an arm says of its own goes before the section"
    set_params(made, arms={"graph": {"kind": "graph_lora"}})
    assert status("0..1") != first


def test_under_a_falling_rate_a_kept_epoch_is_a_training_of_its_own(made: Path) -> None:
    """Its rate has come down by then, which that of the longer training has not."""
    before = (made / "params.yaml").read_text()

    def trained(epochs: int, keep: list[int], folder: str) -> dict[str, bytes]:
        params = yaml.safe_load(before)
        params["train"] |= {"epochs": epochs, "keep_epochs": keep}
        params["train"]["optimiser"]["schedule"] = "linear"
        (made / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
        command(made, "stages.resolve")
        command(made, *STAGE)
        found = made / "outputs/lora/graph" / folder
        return {path.name: path.read_bytes() for path in found.glob("*.safetensors")}

    kept = trained(4, [2, 4], "epoch-2")
    last = {path.name: path.read_bytes() for path in (made / "outputs/lora/graph/epoch-4").glob("*.safetensors")}
    short = trained(2, [], "adapter")
    (made / "params.yaml").write_text(before)
    assert len(kept) == 2 and kept == short and kept != last


def test_another_graph_encoder_retrains_the_arms_that_read_it(made: Path) -> None:
    def resolved(**tokens: object) -> str:
        set_params(made, graph_tokens=tokens)
        command(made, "stages.resolve")
        return (made / "outputs/resolved/graph.json").read_text()

    encoder = made / "outputs/graph_encoder"
    encoder.mkdir()
    (encoder / "weights").write_text("one")
    reads = {"layout": "triple", "relation": "encoder", "encoder": "outputs/graph_encoder"}
    plain, read = resolved(), resolved(**reads)
    (encoder / "weights").write_text("two")
    assert resolved(**reads) != read
    shutil.rmtree(encoder)
    set_params(made, graph_tokens=reads)
    with pytest.raises(ParamsError, match=r"graph_tokens\.encoder: got 'outputs/graph_encoder'"):
        command(made, "stages.resolve")
    set_params(made, graph_tokens={"layout": "objects", "relation": "table", "encoder": None})
    assert resolved() == plain
