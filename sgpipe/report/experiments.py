"""The pages of several experiments, each linked to the others, and an index that compares them."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from markupsafe import Markup

from sgpipe.errors import DataError
from sgpipe.evaluation.arms import read_metrics
from sgpipe.params.load import read_yaml
from sgpipe.report.page import Section, render
from sgpipe.report.sweep import get_outputs
from sgpipe.report.tables import Table, figure
from sgpipe.runs.atomic import new_folder
from sgpipe.tracking.run import flatten
from sgpipe.tracking.sync import Recorded, at_commit

PAGE: Final = "outputs/report/index.html"
WORKSPACE: Final = "workspace"
_HEADER: Final = "<header>"


@dataclass(frozen=True)
class Reported:
    """An experiment's page, with its parameters, its headline figures and the commit that it is of."""

    name: str
    commit: str
    params: Mapping[str, Any]
    headline: Mapping[str, float | None]
    page: str


def workspace_report(root: Path) -> list[Reported]:
    """The page of the working tree, where it was made."""
    page, metrics = root / PAGE, root / "metrics/headline.json"
    if not (page.is_file() and metrics.is_file()):
        return []
    headline = _headline(read_metrics(metrics), str(metrics))
    return [Reported(WORKSPACE, "not committed", read_yaml(root / "params.yaml"), headline, page.read_text(encoding="utf-8"))]


def _headline(found: Any, source: str) -> Mapping[str, float | None]:
    """The figures by name. Raises `DataError` for anything else."""
    if not isinstance(found, dict) or not all(value is None or isinstance(value, int | float) for value in found.values()):
        raise DataError(f"{source}: is no headline, a JSON object of numbers; run `dvc repro headline` there")
    return found


def experiment_report(root: Path, item: Recorded) -> Reported:
    """The page of an experiment, from git and the DVC cache. Raises `DataError` for one that has none."""
    params, metrics = at_commit(root, item.commit)
    if "headline" not in metrics:
        raise DataError(f"{item.name}: has no metrics/headline.json; name experiments that ran stages report and headline")
    headline = _headline(metrics["headline"], f"{item.name}:metrics/headline.json")
    with tempfile.TemporaryDirectory() as folder:
        get_outputs(root, item, (str(Path(PAGE).parent),), Path(folder))
        page = (Path(folder) / "report/index.html").read_text(encoding="utf-8")
    return Reported(str(item.name), item.commit, params, headline, page)


def _address(one: Reported) -> str:
    return f"{quote(one.name, safe='')}/index.html"


def with_links(reports: Sequence[Reported], place: int) -> str:
    """The page of `reports[place]` with links to the index and to those beside it. Raises `DataError` for another page."""
    own = reports[place]
    if own.page.count(_HEADER) != 1:
        raise DataError(f"{own.name}: {PAGE} is no page of stage report; run `dvc repro report` in that experiment")
    beside = [(sign, reports[at]) for sign, at in (("before", place - 1), ("after", place + 1)) if 0 <= at < len(reports)]
    links = [f'<li><a href="../{_address(one)}">{sign}: {escape(one.name)}</a></li>' for sign, one in beside]
    listed = "".join(['<li><a href="../index.html">All experiments</a></li>', *links])
    said = f"<p>Experiment <strong>{escape(own.name)}</strong></p>"
    return own.page.replace(_HEADER, f'{_HEADER}\n<nav aria-label="Experiments">{said}<ul>{listed}</ul></nav>')


def index(reports: Sequence[Reported]) -> str:
    """The page that compares them: headline figures with a link each, and the parameters in which they differ."""
    names = list(dict.fromkeys(name for one in reports for name in one.headline))
    rows = tuple(
        (Markup('<a href="{}">{}</a>').format(_address(one), one.name), *(figure(one.headline.get(name)) for name in names))
        for one in reports
    )
    figures = Table(
        "Headline figures by experiment", ("experiment", *(name.replace("_", " ") for name in names)), rows,
        "Of metrics/headline.json: direction accuracies of the graph arm with the bounds of its interval, of text and of the base, "
        "each in words; the share of swapped graphs that is followed; both objects present; selectivity of the probes.",
    )  # fmt: skip
    flat = [flatten(one.params) for one in reports]
    keys = dict.fromkeys(key for each in flat for key in each)
    differing = [key for key in keys if len({str(each.get(key, "–")) for each in flat}) > 1]
    knobs = Table(
        "Parameters in which they differ", ("parameter", *(one.name for one in reports)),
        tuple((key, *(str(each.get(key, "–")) for each in flat)) for key in differing),
    )  # fmt: skip
    intro = "Each name leads to that experiment's report, which leads back here and to the experiments beside it."
    section = Section("experiments", "Experiments", intro, [figures, *([knobs] if differing else [])])
    return render([section], {one.name: one.commit for one in reports}, "Scene-graph conditioning: experiments")


def link_reports(reports: Sequence[Reported], out: Path) -> Path:
    """Write `out`/index.html and a folder per experiment, replaced as a whole; returns the index."""
    with new_folder(out) as folder:
        for place, one in enumerate(reports):
            path = folder / one.name / "index.html"
            path.parent.mkdir(parents=True)
            path.write_text(with_links(reports, place), encoding="utf-8")
        (folder / "index.html").write_text(index(reports), encoding="utf-8")
    return out / "index.html"
