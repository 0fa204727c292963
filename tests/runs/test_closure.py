"""dvc.yaml against the code: every stage depends on exactly the files it can run and the sections it reads."""

import ast
from pathlib import Path

import pytest
import yaml

from sgpipe.params.registry import SECTIONS
from sgpipe.runs.closure import import_closure

ROOT = Path(__file__).resolve().parents[2]
NOT_RESULTS = {"compute", "tracking"}
"""Sections that say how or where a stage runs; they never change a result."""


def stage_commands() -> dict[str, dict[str, object]]:
    """Stage name to its definition (the `do`/body of matrix stages included)."""
    return yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


def module_of(definition: dict) -> str:
    words = str(definition["cmd"]).split()
    return words[words.index("-m") + 1]


def sections_read(module: str) -> set[str]:
    """Literal section names in `read_section(...)` calls of a stage's file."""
    tree = ast.parse((ROOT / (module.replace(".", "/") + ".py")).read_text())
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "read_section":
            argument = node.args[1]
            assert isinstance(argument, ast.Constant), f"{module}: read_section needs a literal section name"
            found.add(argument.value)
    return found - NOT_RESULTS


@pytest.mark.parametrize("name", list(stage_commands()))
def test_deps_are_the_import_closure(name: str) -> None:
    definition = stage_commands()[name]
    listed = {dep for dep in definition.get("deps", []) if str(dep).endswith(".py")}
    wanted = set(import_closure(module_of(definition), ROOT))
    assert listed == wanted, f"missing: {sorted(wanted - listed)}; needless: {sorted(listed - wanted)}"


@pytest.mark.parametrize("name", list(stage_commands()))
def test_params_are_the_sections_read(name: str) -> None:
    definition = stage_commands()[name]
    listed = {str(key).split(".")[0] for key in definition.get("params", [])}
    assert listed == sections_read(module_of(definition))


def test_every_stage_file_is_in_the_pipeline() -> None:
    files = {f"stages.{path.stem}" for path in (ROOT / "stages").glob("[a-z]*.py")}
    assert files == {module_of(definition) for definition in stage_commands().values()}


def test_every_knob_is_read_somewhere() -> None:
    """No option that nothing reads: each field of each section is an attribute somewhere outside `sgpipe/params`."""
    attributes: set[str] = set()
    for folder in ("sgpipe", "stages", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            if path.parent.name == "params" and path.stem not in ("show", "load", "blocks"):
                continue
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Attribute):
                    attributes.add(node.attr)
    for section, where in SECTIONS.items():
        path = ROOT / (where.split(":")[0].replace(".", "/") + ".py")
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                assert node.target.id in attributes, f"{section}: nothing reads {node.target.id}"


def test_closure_follows_imports_inside_functions_and_packages(tmp_path: Path) -> None:
    for name, text in {
        "stages/__init__.py": "",
        "stages/a.py": "def f():\n    from sgpipe.x import y\n",
        "sgpipe/__init__.py": "",
        "sgpipe/x/__init__.py": "",
        "sgpipe/x/y.py": "import sgpipe.z\nfrom sgpipe.tracking.run import track\n",
        "sgpipe/z.py": "",
        "sgpipe/unused.py": "",
        "sgpipe/tracking/__init__.py": "import sgpipe.unused\n",
        "sgpipe/tracking/run.py": "",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert import_closure("stages.a", tmp_path) == [
        "sgpipe/__init__.py",
        "sgpipe/x/__init__.py",
        "sgpipe/x/y.py",
        "sgpipe/z.py",
        "stages/__init__.py",
        "stages/a.py",
    ]
