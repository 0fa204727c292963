"""What a stage can run: its import closure, without importing anything."""

from pathlib import Path

from sgpipe.runs.closure import import_closure


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_closure_follows_imports_inside_functions_and_packages(tmp_path: Path) -> None:
    write(tmp_path, {
        "stages/__init__.py": "",
        "stages/a.py": "import os.path\nimport numpy as np\ndef f():\n    from sgpipe.x import y\n",
        "sgpipe/__init__.py": "",
        "sgpipe/x/__init__.py": "",
        "sgpipe/x/y.py": "import sgpipe.z\nfrom sgpipe.tracking.run import track\n",
        "sgpipe/z.py": "TABLE = 'table.tsv'\nFOLDER = 'named'\nTEXT = 'unnamed.tsv or so'\n",
        "sgpipe/table.tsv": "",
        "sgpipe/unnamed.tsv": "",
        "sgpipe/named/no_import.py": "",
        "sgpipe/unused.py": "",
        "sgpipe/tracking/__init__.py": "import sgpipe.unused\nimport mlflow\n",
        "sgpipe/tracking/run.py": "",
    })  # fmt: skip
    closure = import_closure("stages.a", tmp_path)
    assert closure.files == (
        "sgpipe/__init__.py",
        "sgpipe/table.tsv",
        "sgpipe/x/__init__.py",
        "sgpipe/x/y.py",
        "sgpipe/z.py",
        "stages/__init__.py",
        "stages/a.py",
    )
    assert closure.foreign == {"numpy", "os"}


def test_entry_points_of_a_group_that_a_module_names_belong_to_it(tmp_path: Path) -> None:
    """As judges that another package of the repository brings: the stage loads them by name, with no import to be seen."""
    write(tmp_path, {
        "pyproject.toml": '[project.entry-points."own.judges"]\nworld = "world.judge:build"\n',
        "world/__init__.py": "",
        "world/judge.py": "import torch\nfrom world.pen import draw\n",
        "world/pen.py": "",
        "stages/judge.py": "from importlib.metadata import entry_points\nGROUP = 'own.judges'\n",
        "stages/other.py": "GROUP = 'judges'\n",
    })  # fmt: skip
    closure = import_closure("stages.judge", tmp_path)
    assert closure.files == ("stages/judge.py", "world/__init__.py", "world/judge.py", "world/pen.py")
    assert closure.foreign == {"importlib", "torch"}
    assert import_closure("stages.other", tmp_path).files == ("stages/other.py",)
