"""Files are whole or absent; configurations keep every digit, metrics read well in a diff."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sgpipe.errors import DataError
from sgpipe.runs.atomic import DIGITS, atomic_path, defined, write_json
from sgpipe.runs.command import write_metrics
from sgpipe.runs.state import config_hash


def test_an_error_leaves_the_old_file_and_no_rubbish(tmp_path: Path) -> None:
    target = tmp_path / "out.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["out.txt"]


def killed(code: str, *arguments: object) -> None:
    """Run Python code that ends by killing itself."""
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], check=False)
    assert done.returncode == -signal.SIGKILL


def test_what_a_killed_writer_left_is_removed_by_the_next_and_a_living_ones_is_not(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from sgpipe.runs.atomic import atomic_path\n"
        "with atomic_path(Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    for name in ("a[1].txt", "a1.txt"):
        killed(code, tmp_path / name)
    other = next(path for path in tmp_path.iterdir() if path.name.startswith(".a1.txt."))
    with atomic_path(tmp_path / "a[1].txt") as temporary:
        assert {path.name for path in tmp_path.iterdir()} == {other.name, temporary.name}
        temporary.write_text("whole")
        alive = temporary.with_name(".a[1].txt.1.tmp")
        temporary.rename(alive)
        subprocess.run(
            [sys.executable, "-c", code.split("temporary.write_text")[0] + "temporary.touch()", tmp_path / "a[1].txt"], check=True
        )
        assert alive.read_text() == "whole"
        alive.rename(temporary)
    assert (tmp_path / "a[1].txt").read_text() == "whole"
    assert {path.name for path in tmp_path.iterdir()} == {other.name, "a[1].txt"}


def test_success_replaces(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "new" / "out.txt") as temporary:
        temporary.write_text("whole")
    assert (tmp_path / "new" / "out.txt").read_text() == "whole"


VALUES = {"b": 1 / 3, "a": {"z": 1, "y": [0.1234567891, True, None, "é"]}}


def test_json_is_sorted_and_exact(tmp_path: Path) -> None:
    """A configuration that is read back is the one that was written."""
    write_json(VALUES, tmp_path / "m.json")
    text = (tmp_path / "m.json").read_text()
    assert json.loads(text) == VALUES
    assert text.index('"a"') < text.index('"b"')


def test_figures_are_rounded(tmp_path: Path) -> None:
    write_json(VALUES, tmp_path / "m.json", DIGITS)
    read = json.loads((tmp_path / "m.json").read_text())
    assert read == {"a": {"y": [0.123457, True, None, "é"], "z": 1}, "b": 0.333333}


def test_a_number_that_is_none_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"m\.json: a\.b\[1\] is nan: JSON holds finite numbers"):
        write_json({"a": {"b": [1.0, float("nan")]}}, tmp_path / "m.json")
    assert not (tmp_path / "m.json").exists()


def test_an_undefined_figure_is_null_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The hour of work before it is not lost."""
    write_metrics({"a": {"b": [1 / 3, float("nan")]}, "c": float("inf")}, tmp_path / "m.json", {"k": 0.1})
    assert json.loads((tmp_path / "m.json").read_text()) == {
        "a": {"b": [0.333333, None]}, "c": None, "config": config_hash({"k": 0.1}),
    }  # fmt: skip
    assert capsys.readouterr().err == f"warning: {tmp_path / 'm.json'}: undefined, written as null: a.b[1], c\n"


def test_of_many_undefined_figures_ten_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert defined({n: float("nan") for n in range(12)}, "evaluation") == dict.fromkeys(map(str, range(12)))
    assert capsys.readouterr().err.endswith("written as null: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more\n")
