"""A revision of the repository in a folder of its own, with its own cache, states and outputs, in which stages are run and timed.

Nothing here imports PyTorch: the size of a process that starts another would count in that one's peak memory.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

KEEPING = """
import runpy, sys, types
from sgpipe.runs import state
state.shutil = types.SimpleNamespace(rmtree=lambda folder: None)
_, module, *arguments = sys.argv
sys.argv = [module, *arguments]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""
"""Runs a stage and leaves its working state as it is when all work is done."""
BUSY = "import os\nos.nice(19)\nwhile True:\n    pass\n"
"""A process of the lowest priority that never waits."""


@dataclass(frozen=True)
class Ran:
    """Seconds on the wall, of all processors, and the largest resident bytes of a command or of a process that it started."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int


def timed(command: Sequence[str], folder: Path, environment: Mapping[str, str], log: Path) -> Ran:
    """Run a command until it ends; what it prints goes to `log`. Raises `RuntimeError` with the last lines where it fails."""
    with log.open("w", encoding="utf-8") as stream:
        start = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=folder, env=dict(environment), stdin=subprocess.DEVNULL, stdout=stream, stderr=stream
        )
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        last = " | ".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-5:])
        raise RuntimeError(f"{folder}: {' '.join(command)[:200]} ended with {process.returncode}: {last}")
    return Ran(seconds, used.ru_utime + used.ru_stime, used.ru_maxrss * (1 if sys.platform == "darwin" else 1024))


@contextmanager
def busy_process() -> Iterator[None]:
    """Within the body a process of the lowest priority computes beside."""
    process = subprocess.Popen([sys.executable, "-c", BUSY])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def merged(values: dict[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with `settings` by dotted key; a key that is not there is made."""
    for key, value in settings.items():
        *sections, last = key.split(".")
        place = values
        for name in sections:
            place = place.setdefault(name, {})
        place[last] = value
    return values


@dataclass(frozen=True)
class Workspace:
    """A checkout of `commit` in `folder`."""

    name: str
    folder: Path
    settings: Mapping[str, Any]

    @classmethod
    def make(cls, name: str, repository: Path, commit: str, folder: Path, settings: Mapping[str, Any]) -> "Workspace":
        """Check out a commit with these parameters over its own, and get the embedded data and checkpoints."""
        subprocess.run(["git", "-C", str(repository), "worktree", "add", "--quiet", "--detach", str(folder), commit], check=True)
        made = cls(name, folder, settings)
        (folder / ".dvc" / "config.local").write_text(f"[cache]\n    dir = {folder / '.dvc' / 'cache'}\n", encoding="utf-8")
        params = folder / "params.yaml"
        values = merged(yaml.safe_load(params.read_text(encoding="utf-8")), settings)
        params.write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), encoding="utf-8")
        made.run("dvc", "pull", "--quiet", "data.dvc", "models.dvc")
        return made

    def remove(self, repository: Path) -> None:
        """Forget the checkout."""
        subprocess.run(["git", "-C", str(repository), "worktree", "remove", "--force", str(self.folder)], check=True)

    @property
    def environment(self) -> dict[str, str]:
        """That of a user's shell, in which the packages of this checkout come first."""
        left_out = ("PYTHONPATH", "MLFLOW_TRACKING_URI", "TORCHINDUCTOR_CACHE_DIR", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV")
        own = {name: value for name, value in os.environ.items() if name not in left_out}
        own["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{own['PATH']}"
        temporary = self.folder / ".dvc" / "tmp" / "system"
        temporary.mkdir(parents=True, exist_ok=True)
        return {**own, "PYTHONPATH": str(self.folder), "TMPDIR": str(temporary)}

    def run(self, module: str, *arguments: str) -> Ran:
        """`python -m module`."""
        return timed([sys.executable, "-m", module, *arguments], self.folder, self.environment, self.folder / ".dvc" / "log.txt")

    def script(self, code: str, *arguments: str) -> Ran:
        """`python -c code`."""
        return timed([sys.executable, "-c", code, *arguments], self.folder, self.environment, self.folder / ".dvc" / "log.txt")

    def said(self) -> str:
        """What the last command printed."""
        return (self.folder / ".dvc" / "log.txt").read_text(encoding="utf-8", errors="replace")

    @property
    def states(self) -> Path:
        """Working states of stages."""
        return self.folder / ".dvc" / "stage-state"

    def forget_states(self) -> None:
        """So that a stage starts from nothing."""
        shutil.rmtree(self.states, ignore_errors=True)

    def keep_done(self, words: Sequence[str]) -> Ran:
        """Run a stage from nothing and keep its working state, which `run_done` puts back."""
        self.forget_states()
        ran = self.script(KEEPING, *words)
        kept = self._kept(words)
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(self.states, kept)
        return ran

    def run_done(self, words: Sequence[str]) -> Ran:
        """Run a stage all of whose work is done."""
        self.forget_states()
        shutil.copytree(self._kept(words), self.states)
        return self.run(*words)

    def _kept(self, words: Sequence[str]) -> Path:
        return self.folder / ".dvc" / "kept" / "_".join(words).replace("/", "-")

    def pipeline(self) -> Ran:
        """`dvc repro` of everything, as from a fresh clone: no output, no cache, no state, nothing compiled."""
        self.forget_states()
        for name in ("outputs", ".dvc/kept", ".dvc/tmp", ".dvc/compiled", ".dvc/cache/runs"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        for name in (".dvc/mlflow.db", "dvc.lock"):
            (self.folder / name).unlink(missing_ok=True)
        return self.run("dvc", "repro")

    def json(self, path: str) -> Any:
        """A JSON file, or the objects of a file with one a line."""
        text = (self.folder / path).read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()] if path.endswith(".jsonl") else json.loads(text)
