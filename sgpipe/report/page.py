"""The page: one HTML file with everything in it, that asks no network for anything."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from sgpipe.errors import DataError
from sgpipe.report import figures, tables
from sgpipe.report.panels import Panel
from sgpipe.report.tables import Table


@dataclass(frozen=True)
class Image:
    """A figure of the page: SVG text or a data URI, with the words that stand for it."""

    alt: str
    caption: str
    svg: str = ""
    uri: str = ""


@dataclass(frozen=True)
class Section:
    """A part of the page. `missing` says what is not there and which command makes it."""

    name: str
    title: str
    intro: str = ""
    tables: Sequence[Table] = ()
    images: Sequence[Image] = ()
    panels: Mapping[str, Sequence[Panel]] = field(default_factory=dict)
    missing: str = ""


def headline_figure(found: Mapping[str, Any]) -> Image:
    """Roles of every arm under every prompt and graph, with intervals."""
    rows = [
        (f"{arm}, {prompt}" + (f", {graph}" if graph != "none" else ""), row)
        for arm, prompt, graph, row in tables.conditions(found)
    ]
    plot = figures.intervals(rows, "direction_accuracy", 0.5, "direction accuracy of g⁺")
    said = "; ".join(f"{label} {tables.with_interval(row, 'direction_accuracy', 2)}" for label, row in rows)
    return Image(f"Direction accuracy of g⁺ by arm, prompt and graph, with 95 % intervals: {said}", "Dashed: chance", svg=plot)


def control_figure(path: Path, arm: str) -> Image:
    """Validation losses of an arm over training, beside those of its controls. Raises `DataError` for a file of another form."""
    with path.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    try:
        steps = [float(row["step"]) for row in rows]
        names = [name for name in rows[0] if name not in ("step", "preferred")]
        columns = {name: [float(row[name]) for row in rows] for name in names}
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise DataError(f"{path}: not a table of control losses ({error}); run `dvc repro train_lora` again") from None
    said = ", ".join(f"{name} {values[-1]:.4f}" for name, values in columns.items())
    return Image(
        f"Validation loss of arm {arm} over {int(steps[-1])} steps; at the end {said}",
        f"Arm {arm}: the same noise and times under the graph, none, another's, the swapped one, and by the base model",
        svg=figures.curves(columns, steps, "validation loss"),
    )


def render(sections: Sequence[Section], provenance: Mapping[str, str], title: str) -> str:
    """The page as text; everything that comes from data is escaped."""
    here = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(here), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    style = Markup((here / "page.css").read_text(encoding="utf-8"))
    page = environment.get_template("page.html.j2")
    return page.render(sections=sections, provenance=provenance, title=title, style=style)
