"""Metrics of another layout than their stage writes end every command that reads them in one line that names the file."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from typer.testing import CliRunner

from sgpipe.cli import app
from sgpipe.errors import DataError
from sgpipe.evaluation.config import Judge, JudgeParams, Statistics
from sgpipe.report.experiments import workspace_report
from sgpipe.report.study_run import qualified_judge
from sgpipe.report.tables import END, begin
from tests.report.pages import FOUND

WRONG: list[Any] = [{"arms": {}}, {"triples": 3}, [], 1, {"arms": {"graph": {"neutral": {"positive": 0.5}}}}]
"""No headline, no arms, no object, and a condition that is a number."""


def refused(*command: str) -> str:
    with pytest.raises(DataError) as error:
        CliRunner().invoke(app, list(command), catch_exceptions=False)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("found", WRONG, ids=repr)
@pytest.mark.parametrize("command", ["headline", "readme-table"])
def test_an_evaluation_of_another_layout_is_said(tmp_path: Path, command: str, found: Any) -> None:
    bad, readme = tmp_path / "bad.json", tmp_path / "README.md"
    bad.write_text(json.dumps(found))
    readme.write_text(f"{begin('evaluation')}\n{END}\n")
    more = ["--readme", str(readme)] if command == "readme-table" else []
    said = refused("report", command, "--evaluation", str(bad), *more)
    assert said.startswith(f"{bad}: is no metrics of an evaluation (") and said.endswith("give what `dvc repro evaluate` writes")
    if found == {"triples": 3}:
        assert "('arms' is missing)" in said


@pytest.mark.parametrize(("option", "name", "writer"), [
    ("sweep", "sweep", "sgpipe report sweep"), ("joint", "localisation", "sgpipe report localisation"),
])  # fmt: skip
def test_the_other_tables_of_the_readme_are_read_as_carefully(tmp_path: Path, option: str, name: str, writer: str) -> None:
    readme, evaluation, bad = (tmp_path / each for each in ("README.md", "evaluation.json", "bad.json"))
    readme.write_text(f"{begin('evaluation')}\n{END}\n{begin(name)}\n{END}\n")
    evaluation.write_text(json.dumps(FOUND))
    bad.write_text("{}")
    files = {"readme": readme, "evaluation": evaluation, "sweep": tmp_path / "none", "joint": tmp_path / "none", option: bad}
    said = refused("report", "readme-table", *(f"--{key}={path}" for key, path in files.items()))
    assert said.startswith(f"{bad}: is no ") and f"is missing); give what `{writer}` writes" in said


@pytest.mark.parametrize(("name", "found"), [
    ("probes", {"best": {"early": {"probe": "cnn"}}}), ("word_probes", {"groups": [{}]}), ("localisation", {"rows": [{}]}),
    ("placement", {"enter": {"x": {}}}), ("placement", []),
])  # fmt: skip
def test_what_localisation_joins_names_the_file_that_is_wrong(
    tmp_path: Path, repo_root: Path, monkeypatch: pytest.MonkeyPatch, name: str, found: Any
) -> None:
    monkeypatch.chdir(repo_root)
    (tmp_path / f"{name}.json").write_text(json.dumps(found))
    (tmp_path / f"{'probes' if name == 'placement' else 'placement'}.json").write_text("{}")
    options = {"metrics": tmp_path, "outputs": tmp_path, "figure": tmp_path / "x.png"}
    said = refused("report", "localisation", *(f"--{key}={path}" for key, path in options.items()))
    assert said.startswith(f"{tmp_path / name}.json: is no metrics of {name} (")


@pytest.mark.parametrize(
    "name", ["word_probes/gains", "localisation/effects", "localisation/samples", "../metrics/placement"]
)  # fmt: skip
@pytest.mark.parametrize("parquet", [True, False])
def test_its_tables_are_named_too(
    tmp_path: Path, repo_root: Path, monkeypatch: pytest.MonkeyPatch, name: str, parquet: bool
) -> None:
    """A file that is no table, and a table of other columns."""
    monkeypatch.chdir(repo_root)
    metrics, outputs = tmp_path / "metrics", tmp_path / "outputs"
    metrics.mkdir()
    (metrics / "word_probes.json").write_text("{}")
    bad = (outputs / f"{name}.parquet").resolve()
    for path in {bad, *([outputs / "localisation/effects.parquet"] if name.endswith("samples") else [])}:
        path.parent.mkdir(parents=True, exist_ok=True)
        if parquet:
            pl.DataFrame({"other": [1]}).write_parquet(path)
        else:
            path.write_text("no table")
    if name.endswith("effects"):
        pl.DataFrame({
            "method": ["ablation"], "kind": ["text"], "triple_id": ["a"], "block": [0], "positive": [1.0], "negative": [0.0],
        }).write_parquet(bad.with_name("samples.parquet"))  # fmt: skip
    said = refused("report", "localisation", f"--metrics={metrics}", f"--outputs={outputs}", f"--figure={tmp_path / 'x.png'}")
    assert said.startswith(f"{bad}: is no table of ")


def test_a_headline_that_is_none_is_not_compared(tmp_path: Path) -> None:
    page, metrics = tmp_path / "outputs/report/index.html", tmp_path / "metrics/headline.json"
    for path in (page, metrics):
        path.parent.mkdir(parents=True)
    page.touch()
    (tmp_path / "params.yaml").write_text("{}")
    for text in ('{"graph": "high"}', "[]"):
        metrics.write_text(text)
        with pytest.raises(DataError, match=r"headline\.json: is no headline, a JSON object of numbers; run `dvc repro headline`"):
            workspace_report(tmp_path)
    metrics.write_text('{"graph": nu')
    with pytest.raises(DataError, match=r"headline\.json: cannot be read"):
        workspace_report(tmp_path)
    metrics.write_text('{"graph": 1, "text": null}')
    assert workspace_report(tmp_path)[0].headline == {"graph": 1, "text": None}


@pytest.mark.parametrize("found", [{}, [], {"judges": {"exact": {}}}], ids=repr)
def test_the_study_reads_its_evaluation_as_carefully(tmp_path: Path, found: Any) -> None:
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps(found))
    judges = JudgeParams({"exact": Judge(kind="sgworld")}, headline="exact")
    with pytest.raises(DataError, match=r"bad\.json: is no metrics of an evaluation"):
        qualified_judge(bad, judges, Statistics(), [], None)  # type: ignore[arg-type]
