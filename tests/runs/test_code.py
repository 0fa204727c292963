"""Code as a dependency, in a small repository that DVC really runs: what an edit, an upgrade and a knob run again, and no more."""

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from sgpipe.cli import app
from sgpipe.errors import CodeError
from sgpipe.runs.code import Code, code_of, pinned
from sgpipe.runs.pipeline import dag, why
from tests.stages.test_pipeline import environment

ROOT = Path(__file__).resolve().parents[2]
FILES = {
    "requirements.lock": "fakelib==1.0\nfilelock==0.1 \\\n    --hash=sha256:00\n",
    "pyproject.toml": "",
    "params.yaml": "data: {root: a}\ncurate: {seed: 1, train: 2}\n",
    ".gitignore": "/hold\n/started\n/outputs\n__pycache__/\n",
    ".dvcignore": "__pycache__/\n",
    "sgpipe/tool.py": '"""Tools."""\n\n\ndef double(value):\n    """Twice `value`."""\n    return value + value\n',
    "sgpipe/helper.py": '"""Helpers."""\n\n\ndef join(words):\n    return "".join(words)\n',
    "stages/__init__.py": "",
    "stages/code.py": (ROOT / "stages/code.py").read_text(),
    "stages/first.py": """
import time
from pathlib import Path

import fakelib
import yaml

from sgpipe.runs.command import run
from sgpipe.runs.state import stage_state
from sgpipe.tool import double

def main():
    seed = yaml.safe_load(Path("params.yaml").read_text())["curate"]["seed"]
    with stage_state("first", "0123456789abcdef", Path()) as state:
        with (state / "visits").open("a") as stream:
            stream.write("x")
        Path("started").touch()
        while Path("hold").exists():
            time.sleep(0.05)
        Path("outputs/first").write_text(f"{double(seed)}")
        print("visits", (state / "visits").stat().st_size)

if __name__ == "__main__":
    run(main)
""",
    "stages/second.py": """
from pathlib import Path

from sgpipe.helper import join
from sgpipe.runs.command import run

def main():
    Path("outputs/second").write_text(join(Path("outputs/first").read_text()))

if __name__ == "__main__":
    run(main)
""",
    "dvc.yaml": """
stages:
  code:
    cmd: python -m stages.code
    deps: [requirements.lock, sgpipe, stages]
    outs: [outputs/code]
  first:
    cmd: python -m stages.first
    deps: [outputs/code/first.json]
    params: [curate.seed]
    outs: [outputs/first]
  second:
    cmd: python -m stages.second
    deps: [outputs/code/second.json, outputs/first]
    outs: [outputs/second]
""",
}
"""A pipeline of two stages: the first imports a library and a tool, holds while there is a file `hold`, and counts its visits."""


class Repository:
    """A copy of the small repository with a library of its own on the path."""

    def __init__(self, root: Path, site: Path) -> None:
        self.root, self.site = root, site

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", *words], cwd=self.root, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, env={**environment(), "PYTHONPATH": str(self.site)},
        )  # fmt: skip

    def run(self, *words: str, fails: bool = False) -> str:
        process = self.start(*words)
        said = process.communicate()[0]
        assert (process.returncode != 0) == fails, said
        return said

    def repro(self) -> set[str]:
        """The stages that `dvc repro` runs."""
        return set(re.findall(r"Running stage '([^']+)'", self.run("dvc", "repro")))

    def edit(self, name: str, change: Callable[[str], str]) -> None:
        path = self.root / name
        text = path.read_text()
        assert change(text) != text
        path.write_text(change(text))

    def upgrade(self, installed: str) -> None:
        """Install fakelib in this version."""
        for path in self.site.glob("*.dist-info"):
            shutil.rmtree(path)
        (self.site / "fakelib.py").write_text("")
        about = self.site / f"fakelib-{installed}.dist-info"
        about.mkdir(parents=True)
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: fakelib\nVersion: {installed}\n")
        (about / "top_level.txt").write_text("fakelib\n")


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """The small repository, committed, after a `dvc repro`."""
    top = tmp_path_factory.mktemp("small")
    repository = Repository(top / "a folder", top / "site")
    repository.site.mkdir()
    repository.upgrade("1.0")
    for name, text in FILES.items():
        path = repository.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace("filelock==0.1", f"filelock=={version('filelock')}"))
    (repository.root / "requirements.lock").open("a").write(f"pyyaml=={version('pyyaml')}\n")
    for name in ("__init__.py", "errors.py", "runs"):
        source, target = ROOT / "sgpipe" / name, repository.root / "sgpipe" / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    for words in (("init", "-q"), ("config", "user.name", "a"), ("config", "user.email", "a@example.org")):
        subprocess.run(["git", *words], cwd=repository.root, check=True)
    repository.run("dvc", "init", "-q")
    assert repository.repro() == {"code", "first", "second"}
    subprocess.run(["git", "add", "-A"], cwd=repository.root, check=True)
    subprocess.run(["git", "commit", "-qm", "start"], cwd=repository.root, check=True)
    return repository


@pytest.fixture
def repository(ran: Repository, tmp_path: Path) -> Repository:
    """`ran`, for one test."""
    shutil.copytree(ran.root, tmp_path / "a folder", symlinks=True)
    shutil.copytree(ran.site, tmp_path / "site")
    return Repository(tmp_path / "a folder", tmp_path / "site")


def test_what_is_edited_upgraded_or_set_runs_what_it_concerns(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repository.root)
    assert "up to date" in repository.run("dvc", "status")
    repository.edit("sgpipe/tool.py", lambda text: text.replace("Twice", "Two times") + "\n# a remark\n")
    repository.edit("sgpipe/errors.py", lambda text: text.replace("Errors that", "The errors that"))
    assert why("second", Path()) == {"second": [], "code": ["files edited; the stages that they concern say which"]}
    printed = CliRunner().invoke(app, ["pipeline", "why", "second"], catch_exceptions=False).stdout.splitlines()
    assert printed == [
        "second:", "  nothing changed since it ran",
        "code, which comes before:", "  files edited; the stages that they concern say which",
    ]  # fmt: skip
    as_json = CliRunner().invoke(app, ["pipeline", "why", "second", "--json"], catch_exceptions=False).stdout
    assert json.loads(as_json) == why("second", Path())
    assert repository.repro() == {"code"}
    assert "up to date" in repository.run("dvc", "status")

    repository.edit("sgpipe/helper.py", lambda text: text.replace('"".join', '"-".join'))
    repository.edit("params.yaml", lambda text: text.replace("train: 2", "train: 3"))
    assert why("second", Path())["second"][0] == "code: sgpipe/helper.py changed"
    assert repository.repro() == {"code", "second"}

    repository.upgrade("1.1")
    repository.edit("requirements.lock", lambda text: text.replace("fakelib==1.0", "fakelib==1.1"))
    assert why("first", Path())["first"][0] == "code: fakelib 1.0 -> 1.1"
    assert repository.repro() == {"code", "first"}

    repository.edit("params.yaml", lambda text: text.replace("seed: 1", "seed: 2"))
    assert why("second", Path()) == {"second": [], "first": ["params: curate.seed 1 -> 2"]}
    assert repository.repro() == {"first", "second"}
    assert (repository.root / "outputs/second").read_text() == "4"
    assert dag(Path()) == ["first   ← params.yaml alone", "second  ← first"]


def held(repository: Repository) -> subprocess.Popen[str]:
    """A `dvc repro` whose first stage is at work and waits for the file `hold` to go."""
    repository.edit("params.yaml", lambda text: text.replace("seed: 1", "seed: 3"))
    (repository.root / "hold").touch()
    (repository.root / "started").unlink()
    process = repository.start("dvc", "repro")
    end = time.monotonic() + 120
    while not (repository.root / "started").exists():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.05)
    return process


def test_code_that_changes_while_a_stage_runs_is_not_recorded(repository: Repository) -> None:
    """The stage fails, its work stays, and with the code as it was the same command goes on from there."""
    before = (repository.root / "dvc.lock").read_text()
    process, tool = held(repository), repository.root / "sgpipe/tool.py"
    text = tool.read_text()
    repository.edit("sgpipe/tool.py", lambda text: text.replace("value + value", "3 * value"))
    (repository.root / "hold").unlink()
    said = process.communicate()[0]
    assert process.returncode != 0
    assert "error: code changed while stages.first ran (sgpipe/tool.py changed)" in said
    assert "Traceback" not in said
    assert (repository.root / "dvc.lock").read_text() == before
    state = repository.root / ".dvc/stage-state/first-0123456789abcdef"
    assert (state / "visits").read_text() == "x"

    tool.write_text(text)
    assert "visits 2" in repository.run("dvc", "repro")
    assert not state.exists() and (repository.root / "outputs/first").read_text() == "6"
    assert "up to date" in repository.run("dvc", "status")


def test_code_that_changes_before_a_stage_starts_is_said_at_its_start(repository: Repository) -> None:
    """What ran before it stays accepted; the next repro hashes the code anew and goes on."""
    process = held(repository)
    repository.edit("sgpipe/helper.py", lambda text: text.replace('"".join', '"-".join'))
    (repository.root / "hold").unlink()
    said = process.communicate()[0]
    assert process.returncode != 0
    assert "error: code changed since outputs/code/second.json was written (sgpipe/helper.py changed)" in said
    assert "python -m stages.code" in said
    assert repository.repro() == {"code", "second"}


def test_a_library_of_another_version_than_the_lock_stops_a_stage(repository: Repository) -> None:
    repository.edit("requirements.lock", lambda text: text.replace("fakelib==1.0", "fakelib==2.0"))
    said = repository.run("dvc", "repro", fails=True)
    assert "error: fakelib 1.0 is installed and requirements.lock has 2.0" in said
    repository.upgrade("2.0+cu130")
    assert repository.repro() == {"first"}, "a build of the same version is the same version"


def test_experiments_in_temporary_workspaces_know_the_code(repository: Repository) -> None:
    said = repository.run("dvc", "exp", "run", "--temp", "-n", "other", "-S", "curate.seed=5")
    assert set(re.findall(r"Running stage '([^']+)'", said)) == {"first", "second"}
    shown = subprocess.run(["git", "show", "refs/exps/exec/EXEC_BRANCH:params.yaml"], cwd=repository.root, capture_output=True)
    assert shown.returncode or b"5" in shown.stdout
    assert "up to date" in repository.run("dvc", "status")


def module(root: Path, text: str) -> Code:
    """The code of a stage with this text."""
    (root / "stages").mkdir(exist_ok=True)
    (root / "stages" / "a.py").write_text(text)
    return code_of("stages.a", root)


PLAIN = 'X = 1\n\ndef f(x):\n    return {**x, "k": None}\n'


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ('"""A."""\n\nX = 1  # one\n"""B."""\n\ndef f(\n    x,\n):\n    """C."""\n    return {**x, "k": None}\n', True),
        (PLAIN.replace("1", "1.0"), False),
        (PLAIN.replace("None", '"None"'), False),
        (PLAIN.replace("**x, ", "None: x, "), False),
        (PLAIN.replace("x):", "x=None):"), False),
        (PLAIN + "\nf.__doc__ = 'text'\n", False),
        (PLAIN.replace("def", "async def"), False),
    ],
)  # fmt: skip
def test_layout_comments_and_docstrings_are_no_code(tmp_path: Path, text: str, same: bool) -> None:
    assert (module(tmp_path, text).digest == module(tmp_path, PLAIN).digest) == same


def test_a_file_that_is_no_python_is_named(tmp_path: Path) -> None:
    with pytest.raises(CodeError, match=r"stages/a\.py:2: .*; mend it"):
        module(tmp_path, "x = 1\ndef f(:\n")
    with pytest.raises(CodeError, match=r"stages/a\.py:1: relative import"):
        module(tmp_path, "from . import b\n")


def test_libraries_are_those_imported_and_their_companions(tmp_path: Path) -> None:
    (tmp_path / "requirements.lock").write_text(
        "Transformers==1.0 \\\n    --hash=sha256:0\ntokenizers==2.0\nsafetensors==3.0 ; python_version > '3'\nruamel-yaml==4\n"
        "typer==5\nunused==6\n"
    )
    text = "import os\nimport typer\nimport transformers.models\n\ndef f():\n    from ruamel.yaml import YAML\n"
    assert module(tmp_path, text).libraries == {
        "ruamel-yaml": "4", "safetensors": "3.0", "tokenizers": "2.0", "transformers": "1.0",
    }  # fmt: skip
    with pytest.raises(CodeError, match=r"requirements\.lock pins no version of einops, which the code imports"):
        module(tmp_path, text + "import einops\n")


def test_what_is_installed_here_is_what_the_lock_says() -> None:
    """Else every stage would refuse to start."""
    pins = pinned(ROOT)
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    assert len(stages) > 20 and {"torch", "diffusers", "ruamel-yaml"} <= pins.keys()
    assert {name: version(name).partition("+")[0] for name in ("torch", "diffusers", "pyarrow")} == {
        name: pins[name].partition("+")[0] for name in ("torch", "diffusers", "pyarrow")
    }
