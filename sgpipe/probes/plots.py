"""Figures of the probes: accuracy by probe, selectivity, the table, and a confusion matrix per layer group."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sgpipe.runs.atomic import atomic_path

TITLES = {"mlp": "SimpleMLP", "cnn": "TinyCNN", "wrn": "WideResNet"}
COLOURS = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#AA3377", "#66CCEE")
"""Of the groups, in their order (Tol's bright scheme)."""
Row = Mapping[str, Mapping[str, Any]]
"""Cells of one probe: `[feature][group]`."""


def _save(figure: Figure, path: Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})


def _drawn(value: float | None) -> float:
    """A figure as matplotlib leaves it out where it is undefined."""
    return float("nan") if value is None else value


def _shown(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _bars(axes: Axes, row: Row, value: str) -> list[tuple[float, Any]]:
    """Grouped bars of one figure of each cell; returns the place of each bar and its cell."""
    groups = list(next(iter(row.values())))
    width = 0.8 / len(groups)
    places = []
    for i, group in enumerate(groups):
        x = np.arange(len(row)) + (i - (len(groups) - 1) / 2) * width
        cells = [cell[group] for cell in row.values()]
        colour = COLOURS[i % len(COLOURS)]
        axes.bar(x, [_drawn(cell[value]) for cell in cells], 0.92 * width, color=colour, label=group)
        places += list(zip(x.tolist(), cells, strict=True))
    axes.set_xticks(np.arange(len(row)), list(row))
    axes.spines[["top", "right"]].set_visible(False)
    return places


def plot_probe(kind: str, row: Row, names: Mapping[str, Mapping[str, Any]], classes: int, path: Path) -> None:
    """Accuracy of one probe by feature and group with its 95 % interval, above what the names alone and chance give."""
    figure = Figure(figsize=(8, 4), dpi=110, layout="constrained")
    axes = figure.subplots()
    for x, cell in _bars(axes, row, "accuracy"):
        low, high = cell["interval"]
        axes.vlines(x, low, high, color="black", linewidth=1)
        axes.plot(x, cell["controls"]["shuffled"], marker="_", color="black", markersize=7)
    alone = float(np.mean([of["accuracy"] for of in names.values()]))
    axes.axhline(alone, color="black", linestyle="--", linewidth=1, label="names alone")
    axes.axhline(1 / classes, color="black", linestyle=":", linewidth=1, label="chance")
    axes.plot([], [], marker="_", color="black", linestyle="", label="shuffled labels")
    axes.set_ylim(0, 1)
    axes.set_ylabel("accuracy, held-out names and images")
    axes.set_title(f"{TITLES[kind]}: relation from maps of sampled images, {classes} classes", fontsize=10, loc="left")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=8)
    _save(figure, path)


def plot_selectivity(cells: Mapping[str, Row], path: Path) -> None:
    """Selectivity of every cell as bars, its accuracy as circles, and the three differences whose least it is as ticks."""
    marks = {"shuffled": ("_", "over shuffled labels"), "names": ("x", "over names alone"), "word": ("1", "over the word")}
    figure = Figure(figsize=(8.6, 2.5 * len(cells) + 0.3), dpi=110, layout="constrained")
    panels = figure.subplots(len(cells), squeeze=False, sharex=False)[:, 0]
    for axes, (kind, row) in zip(panels, cells.items(), strict=True):
        for x, cell in _bars(axes, row, "selectivity"):
            axes.plot(x, cell["accuracy"], marker="o", markerfacecolor="none", color="black", markersize=5)
            for name, (mark, _) in marks.items():
                axes.plot(x, _drawn(cell["over"][name]), marker=mark, color="black", markersize=6)
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set_ylim(top=1)
        axes.set_title(TITLES[kind], fontsize=10, loc="left")
    handles, labels = panels[0].get_legend_handles_labels()
    handles += panels[0].plot([], [], marker="o", markerfacecolor="none", color="black", linestyle="")
    labels.append("accuracy")
    for mark, label in marks.values():
        handles += panels[0].plot([], [], marker=mark, color="black", linestyle="")
        labels.append(label)
    figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=8)
    figure.suptitle("Selectivity: the least of the differences to the controls", fontsize=11, x=0.01, ha="left")
    _save(figure, path)


def plot_noised(fits: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """What the two fits on noised real images answer, by group and t: the image's relation under each prompt, or the word's."""
    titles = {"trace": "Fitted under true prompts alone", "noise_aware": "The noise-aware probe"}
    answers = {
        "true": ("image, true prompt", COLOURS[0]),
        "neutral": ("image, neutral prompt", COLOURS[2]),
        "wrong": ("image, wrong prompt", COLOURS[3]),
        "wrong_towards_word": ("the word, wrong prompt", COLOURS[1]),
    }
    figure = Figure(figsize=(9, 3.1 * len(fits)), dpi=110, layout="constrained")
    panels = figure.subplots(len(fits), squeeze=False)[:, 0]
    for axes, (name, groups) in zip(panels, fits.items(), strict=True):
        columns = [(group, t) for group, fit in groups.items() for t in fit["trace_by_time"]]
        x = np.arange(len(columns))
        for i, (answer, (label, colour)) in enumerate(answers.items()):
            heights = [_drawn(groups[group]["trace_by_time"][t][answer]) for group, t in columns]
            axes.bar(x + 0.2 * (i - 1.5), heights, 0.18, color=colour, label=label)
        alone = [groups[group]["names"] for group, _ in columns]
        axes.hlines(alone, x - 0.45, x + 0.45, "black", "dashed", linewidth=1, label="names alone")
        axes.set_xticks(x, [f"{group}\nt = {t}" for group, t in columns])
        axes.set_ylim(0, 1)
        axes.spines[["top", "right"]].set_visible(False)
        title = f"{titles[name]}: answers on noised real images, held-out names and images"
        axes.set_title(title, fontsize=10, loc="left")
    handles = panels[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside right upper", frameon=False, fontsize=8)
    _save(figure, path)


def plot_table(cells: Mapping[str, Row], path: Path) -> None:
    """The table: a line per probe and group, a column per feature; accuracy ± deviation over seeds, selectivity in brackets."""
    features = list(next(iter(cells.values())))
    groups = list(next(iter(next(iter(cells.values())).values())))
    lines = [(kind, group) for kind in cells for group in groups]
    shown = [[cells[kind][feature][group] for feature in features] for kind, group in lines]
    figure = Figure(figsize=(2 + 1.5 * len(features), 0.42 * len(lines) + 0.9), dpi=110, layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(
        [[_drawn(cell["selectivity"]) for cell in row] for row in shown], cmap="RdBu", vmin=-1, vmax=1, aspect="auto"
    )
    for y, row in enumerate(shown):
        for x, cell in enumerate(row):
            deviation, selectivity = _shown(cell["deviation"], ".3f"), _shown(cell["selectivity"], "+.2f")
            text = f"{cell['accuracy']:.3f} ± {deviation} ({selectivity})"
            axes.text(x, y, text, ha="center", va="center", fontsize=7.5)
    axes.set_xticks(range(len(features)), features)
    axes.set_yticks(range(len(lines)), [f"{TITLES[kind]}, {group}" for kind, group in lines])
    axes.set_title("Accuracy ± deviation over seeds (selectivity)", fontsize=10, loc="left")
    figure.colorbar(image, ax=axes, label="selectivity")
    _save(figure, path)


def plot_confusion(
    group: str, classes: Sequence[str], counts: Sequence[Sequence[int]], best: Mapping[str, Any], path: Path
) -> None:
    """Confusion matrix of a group's best cell: shares of each true class, and counts where they are not zero."""
    matrix = np.asarray(counts, float)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = 1.8 + 0.34 * len(classes)
    figure = Figure(figsize=(side, side), dpi=100, layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for y, x in zip(*np.nonzero(matrix), strict=True):
        colour = "white" if shares[y, x] > 0.5 else "black"
        axes.text(x, y, f"{matrix[y, x]:.0f}", ha="center", va="center", fontsize=6.5, color=colour)
    axes.set_xticks(range(len(classes)), list(classes), rotation=90, fontsize=8)
    axes.set_yticks(range(len(classes)), list(classes), fontsize=8)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(
        f"{group}: {TITLES[best['probe']]} on {best['feature']}, held-out names and images of all seeds", fontsize=9, loc="left"
    )
    _save(figure, path)
