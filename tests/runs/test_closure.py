"""dvc.yaml against the code: every stage depends on exactly the files it can run and the sections it reads."""

import ast
from pathlib import Path

import yaml

from sgpipe.params.registry import SECTIONS
from sgpipe.runs.closure import import_closure
from sgpipe.runs.pipeline import differences, module_of, updated

ROOT = Path(__file__).resolve().parents[2]


def stages() -> dict[str, dict]:
    return yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


def test_dvc_yaml_is_in_step_with_the_code() -> None:
    """`sgpipe pipeline update` mends what this finds."""
    assert differences(stages(), ROOT) == []


def test_updating_changes_nothing_and_mends_what_is_broken() -> None:
    text = (ROOT / "dvc.yaml").read_text()
    assert updated(text, ROOT) == text
    broken = text.replace("    - sgpipe/errors.py\n", "", 1).replace("    - curate\n", "    - data\n", 1)
    broken = broken.replace("    - sgpipe/scene_graphs/predicate_aliases.tsv\n", "")
    found = differences(yaml.safe_load(broken)["stages"], ROOT)
    assert "canonicalize: deps lack sgpipe/errors.py" in found
    assert "canonicalize: deps lack sgpipe/scene_graphs/predicate_aliases.tsv" in found
    assert "curate: params lack curate" in found
    assert "curate: params list data, which the stage does not read" in found
    assert updated(broken, ROOT) == text


def test_every_stage_file_is_in_the_pipeline() -> None:
    files = {f"stages.{path.stem}" for path in (ROOT / "stages").glob("[a-z]*.py")}
    assert files == {module_of(definition) for definition in stages().values()}


def test_every_knob_is_read_somewhere() -> None:
    """No option that nothing reads: each field of each section is an attribute somewhere outside `sgpipe/params`.

    A struct that goes through its own `__struct_fields__` reads all of them.
    """
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
        structs = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)]
        structs = [struct for struct in structs if "__struct_fields__" not in ast.dump(struct)]
        for node in (statement for struct in structs for statement in struct.body):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                assert node.target.id in attributes, f"{section}: nothing reads {node.target.id}"


def test_closure_follows_imports_inside_functions_and_packages(tmp_path: Path) -> None:
    for name, text in {
        "stages/__init__.py": "",
        "stages/a.py": "def f():\n    from sgpipe.x import y\n",
        "sgpipe/__init__.py": "",
        "sgpipe/x/__init__.py": "",
        "sgpipe/x/y.py": "import sgpipe.z\nfrom sgpipe.tracking.run import track\n",
        "sgpipe/z.py": "TABLE = 'table.tsv'\nTEXT = 'unnamed.tsv or so'\n",
        "sgpipe/table.tsv": "",
        "sgpipe/unnamed.tsv": "",
        "sgpipe/unused.py": "",
        "sgpipe/tracking/__init__.py": "import sgpipe.unused\n",
        "sgpipe/tracking/run.py": "",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert import_closure("stages.a", tmp_path) == [
        "sgpipe/__init__.py",
        "sgpipe/table.tsv",
        "sgpipe/x/__init__.py",
        "sgpipe/x/y.py",
        "sgpipe/z.py",
        "stages/__init__.py",
        "stages/a.py",
    ]
