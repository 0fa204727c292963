"""Reports of experiments lead to one another, and their index says in what they differ."""

import re
from pathlib import Path
from urllib.parse import unquote

import pytest
from typer.testing import CliRunner

from sgpipe.cli import app
from sgpipe.errors import DataError
from sgpipe.report.experiments import Reported, index, link_reports
from tests.report.pages import page

LINK = re.compile(r'href="([^"#:]+)"')


def reported(name: str, rate: float, own_page: str, accuracy: float | None = 0.9) -> Reported:
    params = {"train": {"optimiser": {"learning_rate": rate}, "seed": 0}}
    return Reported(name, name * 10, params, {"graph": accuracy, "objects": 1.0}, own_page)


def test_every_link_leads_to_a_page_and_every_page_is_reached(tmp_path: Path) -> None:
    text = page(tmp_path)
    names = ("workspace", "rate 1 & more", "seed-2")
    first = link_reports([reported(name, rate, text) for rate, name in enumerate(names)], tmp_path / "out")
    todo, seen = [first], set()
    while todo:
        at = todo.pop().resolve()
        if at in seen:
            continue
        assert at.is_file(), at
        seen.add(at)
        todo += [at.parent / unquote(target) for target in LINK.findall(at.read_text())]
    assert seen == {first.resolve(), *((tmp_path / "out" / name / "index.html").resolve() for name in names)}
    middle = (tmp_path / "out" / names[1] / "index.html").read_text()
    assert "before: workspace" in middle and "after: seed-2" in middle and "rate 1 &amp; more" in middle
    assert "before:" not in (tmp_path / "out/workspace/index.html").read_text()


def test_the_index_has_figures_and_only_what_differs(tmp_path: Path) -> None:
    text = index([reported("a", 1e-2, ""), reported("b", 2e-2, "", None)])
    assert "train.optimiser.learning_rate" in text and "train.seed" not in text
    assert re.search(r'<a href="b/index.html">b</a></th>\s*<td>–</td>\s*<td>1.000</td>', text)
    assert "Parameters in which they differ" not in index([reported("a", 1, ""), reported("b", 1, "")])


def test_what_is_no_report_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"b: outputs/report/index\.html is no page"):
        link_reports([reported("a", 1, page(tmp_path)), reported("b", 1, "<p>")], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_experiment_without_a_report_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sgpipe.report import experiments, sweep

    def read(root: Path, item: str) -> Reported:
        if item == "old":
            raise DataError("old: has no metrics/headline.json")
        return reported(item, 1, page(tmp_path))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep, "named_experiments", lambda root, patterns: ["old", "new"])
    monkeypatch.setattr(experiments, "experiment_report", read)
    ran = CliRunner().invoke(app, ["report", "experiments", "--out", "linked"], catch_exceptions=False)
    assert ran.exit_code == 0 and "warning: old: has no metrics/headline.json; left out" in ran.output
    assert sorted(each.name for each in Path("linked").iterdir()) == ["index.html", "new"]
