"""The README's table is what the metrics say."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sgpipe.cli import app
from sgpipe.errors import DataError, SgpipeError
from sgpipe.report.tables import END, begin, replace_table
from tests.report.pages import FOUND, table

RUNNER = CliRunner()
BEGIN = begin("evaluation")


def test_the_table_is_written_once_and_checked(tmp_path: Path) -> None:
    paths = {name: tmp_path / f"{name}.json" for name in ("evaluation", "sweep")}
    paths["evaluation"].write_text(json.dumps(FOUND))
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    command = ["report", "readme-table", f"--readme={readme}", *(f"--{n}={p}" for n, p in paths.items())]
    refused = RUNNER.invoke(app, [*command, "--check"])
    assert isinstance(refused.exception, SgpipeError) and "are not those of the metrics" in str(refused.exception)
    assert "written" in RUNNER.invoke(app, command).output
    text = readme.read_text()
    assert text.startswith(f"before\n{BEGIN}\n") and text.endswith(f"{END}\nafter\n") and "old" not in text
    assert "| graph, neutral prompt, g⁺ | 0.800 | 0.700 [0.600, 0.800] |" in text
    assert "| base, neutral prompt | 0.800 | – |" in text
    assert "graph, relational" not in text and "conflicting" not in text
    assert "already in step" in RUNNER.invoke(app, [*command, "--check"]).output
    FOUND_LATER = {**FOUND, "triples": 9}
    paths["evaluation"].write_text(json.dumps(FOUND_LATER))
    assert RUNNER.invoke(app, [*command, "--check"]).exit_code != 0


def test_markers_are_needed() -> None:
    for text in ("", f"{BEGIN}\n", f"{END}{BEGIN}", f"{BEGIN}{BEGIN}{END}"):
        with pytest.raises(DataError, match="put them where the table is to stand"):
            replace_table(text, "evaluation", "x")
    assert replace_table(f"a{BEGIN}b{END}c", "evaluation", "t") == f"a{BEGIN}\n\nt\n\n{END}c"
    two = f"{begin('sweep')}b{END}c{BEGIN}d{END}"
    assert replace_table(two, "sweep", "t") == f"{begin('sweep')}\n\nt\n\n{END}c{BEGIN}d{END}"


def test_markdown_escapes_bars() -> None:
    assert table().markdown() == "Caption\n\n| a | b |\n| --- | --- |\n| x | 1\\|2 |\n\nNote."


def test_a_run_ends_with_the_table_and_the_page(tmp_path: Path) -> None:
    """Every row and figure whole, whatever the width of the terminal; without a page it says what makes one."""
    metrics, page = tmp_path / "evaluation.json", tmp_path / "index.html"
    metrics.write_text(json.dumps(FOUND))
    options = {"evaluation": metrics, "report": page}
    command = ["report", "headline", *(f"--{name}={path}" for name, path in options.items())]
    refused = RUNNER.invoke(app, command)
    assert isinstance(refused.exception, SgpipeError) and "dvc repro report" in str(refused.exception)
    page.touch()
    (said,) = RUNNER.invoke(app, [*command, "--json"]).output.splitlines()
    found = json.loads(said)
    assert (found["judge"], found["report"]) == ("exact", str(page))
    rows = {(row["arm"], row["prompt"], row["graph"]): row for row in found["rows"]}
    assert rows["graph", "neutral", "positive"] == {
        "arm": "graph", "prompt": "neutral", "graph": "positive", "objects_present": 0.8, "direction_accuracy": 0.7,
        "direction_accuracy_low": 0.6, "direction_accuracy_high": 0.8,
    }  # fmt: skip
    assert rows["base", "neutral", "none"]["direction_accuracy"] is None and len(rows) == 5
    shown = RUNNER.invoke(app, command).output
    assert "graph, neutral prompt, g⁺" in shown and "0.700 [0.600, 0.800]" in shown
    assert shown.endswith(f"report: {page}\n") and "…" not in shown
