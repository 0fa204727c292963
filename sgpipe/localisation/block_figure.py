"""A figure of all methods by block: where a relation is read, used and written, one panel each, with intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from sgpipe.localisation.table import ALL
from sgpipe.runs.atomic import atomic_path

COLOURS: Final = ("#1f5fa8", "#b4441c", "#2f7d4f", "#6b4a9e", "#5c5c5c", "#8a6d00")
MARKERS: Final = ("o", "s", "^", "D", "v", "P")
Point = tuple[float, float, float, float]
"""Block, figure, and the bounds of its interval."""


@dataclass(frozen=True)
class Panel:
    """One axis of the figure: a line for each label; `spans` are figures of layer groups, by first and last block."""

    title: str
    lines: Mapping[str, Sequence[Point]]
    spans: Sequence[tuple[float, float, Point]] = field(default_factory=tuple)
    level: float = 0.0
    """Drawn as a dashed line: no effect, or chance."""


def _point(block: float, row: Mapping[str, Any], name: str) -> list[Point]:
    """A point, or none where the figure is undefined; undefined bounds are the figure itself."""
    value = row.get(name)
    if value is None:
        return []
    low, high = (value if row.get(f"{name}{end}") is None else row[f"{name}{end}"] for end in ("_low", "_high"))
    return [(block, value, low, high)]


def _patched(localisation: Mapping[str, Any]) -> dict[str, list[Point]]:
    lines: dict[str, list[Point]] = {}
    for row in localisation.get("rows", ()):
        if row["block"] is not None and (row["method"], row["kind"]) == ("patching", "denoising"):
            lines.setdefault(f"{row['rows']} rows", []).extend(_point(row["block"], row, "effect"))
    return lines


def _zeroed(localisation: Mapping[str, Any]) -> list[Point]:
    """Direction accuracy without intervention less that of samples with the block's text zeroed; bounds are those of the latter."""
    whole = localisation.get("unpatched", {}).get("positive", {}).get("direction_accuracy")
    rows = [each for each in localisation.get("rows", ()) if (each["method"], each["kind"]) == ("ablation", "text")]
    found = [point for row in rows if row["block"] is not None for point in _point(row["block"], row, "direction_accuracy")]
    return [] if whole is None else [(block, whole - value, whole - high, whole - low) for block, value, low, high in found]


def panels(
    groups: Mapping[str, Sequence[int]], words: Mapping[str, Any], localisation: Mapping[str, Any], placement: Mapping[str, Any]
) -> list[Panel]:
    """What the metrics files of these names say of each block of layer groups and beside them; empty files give none."""
    probes: dict[str, list[Point]] = {}
    for row in words.get("rows", ()):
        if row["block"] >= 0:
            probes.setdefault(row["word"], []).extend(_point(row["block"], row, "selectivity"))
    places = {**groups, ALL: [block for blocks in groups.values() for block in blocks]}
    spans = [
        (min(places[name]) - 0.4, max(places[name]) + 0.4, point)
        for name, row in placement.get("lora", {}).items()
        if name in groups
        for point in _point(float(np.mean(places[name])), row, "direction_accuracy")
    ]
    entries = [
        point
        for block, row in sorted(placement.get("enter", {}).items(), key=lambda each: int(each[0]))
        for point in _point(int(block), row, "direction_accuracy")
    ]
    entry: dict[str, list[Point]] = {"tokens enter at\nthis block (LoRA\non all groups)": entries} if entries else {}
    every = [
        Panel("read: probe of a word's row behind the block, accuracy above its controls", probes),
        Panel("used: effect of patching these rows of g⁺ into g⁻ (1: g⁺'s velocity)", _patched(localisation)),
        Panel("used: direction accuracy lost when the block's text is zeroed", {"text zeroed": _zeroed(localisation)}),
        Panel("written: direction accuracy after a short training", entry, spans, 0.5),
    ]
    return [panel for panel in every if panel.spans or any(panel.lines.values())]


def draw_blocks(shown: Sequence[Panel], groups: Mapping[str, Sequence[int]], double_blocks: int, blocks: int, out: Path) -> None:
    """Write panels one above the other as a PNG; of `blocks` blocks the first `double_blocks` are double-stream ones."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 0.7 + 2.0 * len(shown)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
    for axis, panel in zip(axes, shown, strict=True):
        axis.axhline(panel.level, color="#5c5c5c", linestyle="--", linewidth=0.8)
        for first, last, (_, value, low, high) in panel.spans:
            axis.fill_between([first, last], [low] * 2, [high] * 2, color=COLOURS[0], alpha=0.18, linewidth=0)
            label = "LoRA on the group" if first == min(span[0] for span in panel.spans) else None
            axis.plot([first, last], [value] * 2, color=COLOURS[0], linewidth=2, label=label)
        shown_lines = ((label, points) for label, points in panel.lines.items() if points)
        for place, (label, points) in enumerate(shown_lines, start=bool(panel.spans)):
            x, value, low, high = np.array(points, dtype=float).T
            style: dict[str, Any] = {
                "color": COLOURS[place % len(COLOURS)],
                "marker": MARKERS[place % len(MARKERS)],
                "markersize": 4,
            }
            axis.errorbar(
                x, value, np.maximum([value - low, high - value], 0), label=label, linewidth=1.2, capsize=2, elinewidth=0.8, **style
            )
        axis.set_title(panel.title, fontsize=9, loc="left")
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=7)
        axis.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
        for place, (name, of) in enumerate(groups.items()):
            axis.axvspan(min(of) - 0.5, max(of) + 0.5, color="#5c5c5c", alpha=0.08 if place % 2 else 0.02, linewidth=0)
            if axis is axes[0]:
                middle = (min(of) + max(of)) / 2
                axis.annotate(name, (middle, 1.0), xycoords=("data", "axes fraction"), ha="center", va="top", fontsize=8)
    names = [str(block) if block < double_blocks else f"s{block - double_blocks}" for block in range(blocks)]
    axes[-1].set(xlim=(-0.7, blocks - 0.3), xticks=range(blocks), xticklabels=names)
    axes[-1].set_xlabel("block" if blocks == double_blocks else "block (s: single-stream)", fontsize=8)
    with atomic_path(out) as temporary:
        figure.savefig(temporary, format="png", dpi=130, metadata={"Software": None})
