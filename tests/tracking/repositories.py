"""Git and DVC repositories with one toy stage, and what they have recorded."""

import os
import subprocess
import sys
from pathlib import Path

from sgpipe.tracking.store import open_store

ROOT = Path(__file__).resolve().parents[2]
PARAMS = "compute: {}\ntracking: {experiment: trial}\ntoy: {rate: 1}\n"
STAGE = """
import json, sys
from pathlib import Path
import msgspec, yaml
from sgpipe.params import load
class Toy(msgspec.Struct):
    rate: float
load.SECTIONS["toy"] = "__main__:Toy"
from sgpipe.tracking.run import track
rate = yaml.safe_load(Path("params.yaml").read_text())["toy"]["rate"]
with track("toy", {"toy": {"rate": rate}}, [Path("in.txt")]) as run:
    for step in range(3):
        run.log_step(step, {"loss": rate / (step + 1)})
    Path("metrics").mkdir(exist_ok=True)
    Path("outputs/toy").mkdir(parents=True, exist_ok=True)
    Path("outputs/toy/rate.txt").write_text(str(rate))
    Path("metrics/toy.json").write_text(json.dumps({"score": rate * 2}))
    run.log_metrics({"score": rate * 2, "by": {"left of": 1}})
"""
DVC = """
stages:
  toy:
    cmd: {python} stage.py
    deps: [stage.py, in.txt]
    params: [toy]
    outs: [outputs/toy]
    metrics:
      - metrics/toy.json: {{cache: false}}
"""


def run(root: Path, *command: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "GIT_CONFIG_GLOBAL": os.devnull}
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}\n{done.stderr}"
    return done.stdout


def make_repository(root: Path, git_root: Path | None = None) -> Path:
    """A DVC project with one toy stage, committed, in `root`; `git_root` is the git repository around it, else itself."""
    root.mkdir(parents=True)
    (root / "params.yaml").write_text(PARAMS)
    (root / "stage.py").write_text(STAGE)
    (root / "in.txt").write_text("1")
    (root / "dvc.yaml").write_text(DVC.format(python=sys.executable))
    around = git_root or root
    run(around, "git", "init", "-q")
    run(around, "git", "config", "user.email", "a@example.org")
    run(around, "git", "config", "user.name", "a")
    run(root, sys.executable, "-m", "dvc", "init", "-q", *(["--subdir"] if git_root else []))
    (root / ".dvc" / "config").write_text("[core]\n    analytics = false\n" + (root / ".dvc" / "config").read_text())
    run(around, "git", "add", "-A")
    run(around, "git", "commit", "-qm", "start")
    return root


def runs(root: Path, kind: str) -> list:
    client, experiment = open_store(root, "trial")
    return client.search_runs([experiment], f"tags.`sgpipe.kind` = '{kind}'")


def write_plain_params(root: Path) -> None:
    (root / "params.yaml").write_text("compute: {}\ntracking: {experiment: trial}\n")
