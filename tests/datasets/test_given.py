"""A table that a person names is refused in one line by every option that takes one."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from sgpipe.cli import app
from sgpipe.datasets.given import given_table
from sgpipe.datasets.tables import TRIPLES, write_table
from sgpipe.errors import DataError
from tests.tiny import curated_triples, write_pipeline

OPTIONS = {
    "--known": ["study", "--size=32"],
    "--triples": ["report", "sheet", "--images=nowhere"],
    "--from": ["report", "sweep"],
    "--images-table": ["fetch", "visual-genome", "--root=new"],
}


def write(kind: str, path: Path) -> None:
    if kind == "text":
        path.write_text("no table")
    elif kind == "other":
        pq.write_table(pa.table({"other": [1]}), path)
    elif kind == "type":  # of all columns that the options read
        names = ("objects", "triple_id", "split", "subject", "predicate", "object", "image_id", "arm")
        pq.write_table(pa.table({name: [{"a": 1}] for name in names}), path)


@pytest.mark.parametrize("kind, said", [
    ("none", "no such file; give a table as "), ("text", "cannot be read as such a table ("),
    ("other", "has no column "), ("type", ""),
])  # fmt: skip
@pytest.mark.parametrize("option", [*OPTIONS, "fetch --triples"])
def test_what_is_no_such_table_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str, kind: str, said: str) -> None:
    bad = tmp_path / "bad.parquet"
    write(kind, bad)
    monkeypatch.chdir(tmp_path)
    command, option = list(OPTIONS.get(option, OPTIONS["--images-table"])), option.removeprefix("fetch ")
    if option == "--known":
        command.append(f"--model={write_pipeline(tmp_path / 'tiny')}")
    if option == "--images-table":
        write_table(curated_triples(1, "val"), tmp_path / "triples.parquet")
        command.append("--triples=triples.parquet")
    with pytest.raises(DataError) as error:
        CliRunner().invoke(app, [*command, f"{option}={bad}"], catch_exceptions=False)
    text = str(error.value)
    assert text.startswith(f"{option} {bad}: {said}") and "\n" not in text and "give " in text


def test_a_sound_table_is_read_with_its_types(tmp_path: Path) -> None:
    rows = curated_triples(3, "val")
    write_table(rows, tmp_path / "t.parquet")
    assert given_table("--known", tmp_path / "t.parquet", TRIPLES, "x").equals(rows)
    assert given_table("--known", tmp_path / "t.parquet", TRIPLES, "x", ["objects"]).column_names == ["objects"]
