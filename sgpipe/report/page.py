"""The page: one HTML file with everything in it, that asks no network for anything."""

import csv
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
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
    predicate: str = ""
    """The class that it is of, if of one."""


@dataclass(frozen=True)
class Section:
    """A part of the page. `missing` says what is not there and which command makes it; `about` says what a kind of panels is."""

    name: str
    title: str
    intro: str = ""
    tables: Sequence[Table] = ()
    images: Sequence[Image] = ()
    panels: Mapping[str, Sequence[Panel]] = field(default_factory=dict)
    missing: str = ""
    about: Mapping[str, str] = field(default_factory=dict)


def headline_figure(found: Mapping[str, Any]) -> Image:
    """Roles of every arm under every prompt and graph, with intervals."""
    rows = [
        (f"{arm}, {prompt}" + (f", {graph}" if graph != "none" else ""), row)
        for arm, prompt, graph, row in tables.conditions(found)
    ]
    plot = figures.intervals(rows, "direction_accuracy", 0.5, "direction accuracy of g⁺")
    said = "; ".join(f"{label} {tables.with_interval(row, 'direction_accuracy', 2)}" for label, row in rows)
    return Image(f"Direction accuracy of g⁺ by arm, prompt and graph, with 95 % intervals: {said}", "Dashed: chance", svg=plot)


def _losses(path: Path, kind: str, chosen: Callable[[str], bool]) -> tuple[list[float], dict[str, list[float]], str]:
    """Steps, the chosen columns of a table of losses, and their last values in words. Raises `DataError` for another table."""
    with path.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    try:
        steps = [float(row["step"]) for row in rows]
        columns = {name: [float(row[name]) for row in rows] for name in rows[0] if name != "step" and chosen(name)}
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise DataError(f"{path}: not a table of {kind} losses ({error}); run `dvc repro train_lora` again") from None
    return steps, columns, ", ".join(f"{name} {values[-1]:.4f}" for name, values in columns.items())


def training_figure(path: Path, arm: str) -> Image:
    """Parts of an arm's training loss over its steps. Raises `DataError` for a file of another form."""
    steps, columns, said = _losses(path, "training", ("loss", "flow", "negative").__contains__)
    return Image(
        f"Training loss of arm {arm} over {int(steps[-1])} steps; at the end {said}",
        f"Arm {arm}, learning curve: the whole loss and its parts, means over the steps since the point before",
        svg=figures.curves(columns, steps, "training loss"),
    )


def epochs_figure(found: Mapping[str, Any]) -> Image:
    """Direction accuracy of g⁺ and swap-follow rate over epochs, with intervals, of the metrics of `ablation`."""
    names = {"direction_accuracy": "direction accuracy of g⁺", "swap_follow_rate": "swap-follow rate"}
    rows = {int(epoch): row for epoch, row in found["epochs"].items()}
    epochs = sorted(epoch for epoch, row in rows.items() if all(row.get(name) is not None for name in names))
    columns = {said: [rows[epoch][name] for epoch in epochs] for name, said in names.items()}
    bounds = {said: [(rows[e][f"{name}_low"], rows[e][f"{name}_high"]) for e in epochs] for name, said in names.items()}
    said = "; ".join(
        f"{epoch} epochs: {', '.join(f'{said} {tables.with_interval(rows[epoch], name, 2)}' for name, said in names.items())}"
        for epoch in epochs
    )
    return Image(
        f"Learning curve with 95 % intervals. {said}",
        "Learning curve: what the images show by epochs of training",
        svg=figures.curves(columns, epochs, "share of images", bounds, "epochs"),
    )


def control_figure(path: Path, arm: str) -> Image:
    """Validation losses of an arm over training, beside those of its controls. Raises `DataError` for a file of another form."""
    steps, columns, said = _losses(path, "control", lambda name: name != "preferred")
    return Image(
        f"Validation loss of arm {arm} over {int(steps[-1])} steps; at the end {said}",
        f"Arm {arm}, learning curve: the same noise under the graph, none, another's, the swapped one, and by the base",
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
    panels = [panel for section in sections for several in section.panels.values() for panel in several]
    counts = Counter(predicate for panel in panels for predicate in set(panel.predicates))
    of_rows = {predicate for section in sections for table in section.tables for predicate in table.predicates}
    numbers = {predicate: number for number, predicate in enumerate(sorted(counts.keys() | of_rows))}

    def marks(*predicates: str) -> str:
        return " ".join(f"c{numbers[each]}" for each in dict.fromkeys(predicates) if each in numbers)

    return page.render(
        sections=sections, provenance=provenance, title=title, style=style, marks=marks, counts=counts, numbers=numbers
    )
