"""What a stage can run: its import closure, without importing anything."""

from collections.abc import Callable
from pathlib import Path

import pytest

from sgpipe.runs import closure
from sgpipe.runs.closure import KEPT, import_closure, keep, recall, source_at


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
    found = import_closure("stages.a", tmp_path)
    assert found.files == (
        "sgpipe/__init__.py",
        "sgpipe/table.tsv",
        "sgpipe/x/__init__.py",
        "sgpipe/x/y.py",
        "sgpipe/z.py",
        "stages/__init__.py",
        "stages/a.py",
    )
    assert found.foreign == {"numpy", "os"}


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
    found = import_closure("stages.judge", tmp_path)
    assert found.files == ("stages/judge.py", "world/__init__.py", "world/judge.py", "world/pen.py")
    assert found.foreign == {"importlib", "torch"}
    assert import_closure("stages.other", tmp_path).files == ("stages/other.py",)


@pytest.fixture
def forgetting(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Has this process know of no file, as one that starts."""

    def forget() -> None:
        for name, empty in (("_known", {}), ("_met", set()), ("_unkept", set())):
            monkeypatch.setattr(closure, name, empty)

    forget()
    return forget


def test_what_is_known_of_a_file_is_kept_by_its_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forgetting: Callable[[], None]
) -> None:
    """The next process parses nothing that it knows; an edited file is another content."""
    (tmp_path / ".dvc").mkdir()
    write(
        tmp_path,
        {"a/__init__.py": "", "a/b.py": "import os\nimport a.c\nX = 'y.tsv'\n", "a/c.py": "Z = '\\ud800'\n", "a/y.tsv": ""},
    )
    before, digest = import_closure("a.b", tmp_path), source_at(tmp_path / "a/c.py").digest
    keep(tmp_path)
    forgetting()
    recall(tmp_path)
    parsed: list[str] = []
    plain = closure._parse
    monkeypatch.setattr(closure, "_parse", lambda text, name: (parsed.append(name), plain(text, name))[1])
    assert import_closure("a.b", tmp_path) == before and source_at(tmp_path / "a/c.py").digest == digest
    assert parsed == []
    write(tmp_path, {"a/c.py": "Z = 2\n"})
    assert source_at(tmp_path / "a/c.py").digest != digest
    assert parsed == [str(tmp_path / "a/c.py")]


@pytest.mark.parametrize("text", ["", "[1]", '{"x": 1}', '{"x": [["a"]]}'])
def test_a_damaged_record_of_files_is_as_none(tmp_path: Path, text: str, forgetting: Callable[[], None]) -> None:
    write(tmp_path, {str(KEPT): text, "a.py": "import os\n"})
    recall(tmp_path)
    assert source_at(tmp_path / "a.py").imports == {"os"}
    keep(tmp_path)
    forgetting()
    recall(tmp_path)
    assert [each.imports for each in closure._known.values()] == [frozenset({"os"})]


def test_nothing_is_kept_where_there_is_no_dvc_repository(tmp_path: Path, forgetting: Callable[[], None]) -> None:
    write(tmp_path, {"a.py": "import os\n"})
    source_at(tmp_path / "a.py")
    keep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a.py"]
