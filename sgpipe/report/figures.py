"""Figures as SVG text that stands in the page itself: intervals, curves, scene graphs. The same numbers give the same bytes."""

import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from html import escape
from itertools import cycle
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

COLOURS = ("#1f5fa8", "#b4441c", "#2f7d4f", "#6b4a9e", "#5c5c5c", "#8a6d00", "#a0286e")
"""Dark enough on white for 4.5 : 1, and told apart by the line's style as well."""
STYLES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)), (0, (3, 1, 1, 1)))


def _figure(height: float) -> tuple[Figure, Any]:
    """An empty figure and its axes, open above and on the right."""
    figure = Figure(figsize=(6.4, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _svg(figure: Figure) -> str:
    """The figure as an `<svg>` element without anything that changes between runs.

    Several share a page: ids that nothing names go, the others start with a hash of the figure.
    """
    stream = io.StringIO()
    with rc_context({"svg.hashsalt": "sgpipe", "svg.fonttype": "path"}):
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    mark = f"f{hashlib.sha256(svg.encode()).hexdigest()[:8]}-"
    named = set(re.findall(r'(?:href="|url\()#([^")]+)', svg))
    svg = re.sub(r' id="([^"]+)"', lambda found: f' id="{mark}{found[1]}"' if found[1] in named else "", svg)
    return re.sub(r'(href="|url\()#', rf"\1#{mark}", svg)


def intervals(rows: Sequence[tuple[str, Mapping[str, Any]]], name: str, chance: float | None, title: str) -> str:
    """A dot with its interval for each labelled row; rows without a figure are left out. `chance` is drawn as a line."""
    known = [(label, row) for label, row in rows if row.get(name) is not None]
    figure, axes = _figure(0.9 + 0.32 * max(1, len(known)))
    for place, (_, row) in enumerate(reversed(known)):
        low, high = row[f"{name}_low"], row[f"{name}_high"]
        axes.plot([low, high], [place, place], color=COLOURS[0], linewidth=2)
        axes.plot([row[name]], [place], "o", color=COLOURS[0])
        axes.annotate(f"{row[name]:.2f}", (row[name], place), (0, 5), textcoords="offset points", ha="center", fontsize=8)
    if chance is not None:
        axes.axvline(chance, color=COLOURS[4], linestyle="--", linewidth=1)
    axes.set_yticks(range(len(known)), [label for label, _ in reversed(known)])
    axes.set_xlim(0, 1)
    axes.set_ylim(-0.6, len(known) - 0.3)
    axes.set_xlabel(title)
    return _svg(figure)


def curves(
    columns: Mapping[str, Sequence[float]],
    steps: Sequence[float],
    title: str,
    bounds: Mapping[str, Sequence[tuple[float, float]]] | None = None,
    over: str = "step",
) -> str:
    """Lines over training steps (or `over` something else), each with a style of its own; `bounds` are intervals by column, of
    shares.
    """
    figure, axes = _figure(3.4)
    apart = (max(steps, default=0) - min(steps, default=0)) / 100  # intervals at one place would hide one another
    for n, ((name, values), colour, style) in enumerate(zip(columns.items(), cycle(COLOURS), cycle(STYLES), strict=False)):
        places = [step + n * apart for step in steps] if bounds else steps
        axes.plot(places, values, label=name, color=colour, linestyle=style, marker="o", markersize=3)
        if bounds:
            axes.vlines(places, *zip(*bounds[name], strict=True), colors=colour)
    if bounds:
        axes.set_ylim(0, 1.02)
    axes.set_xlabel(over)
    axes.set_ylabel(title)
    axes.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3)
    return _svg(figure)


def _wrapped(words: str) -> str:
    return words if len(words) <= 12 else words[:11] + "…"


def scene_graph(subject: str, predicate: str, object_: str) -> str:
    """A triple as two nodes and an arrow, 132 × 96."""
    said = escape(f"{subject} {predicate} {object_}")
    nodes = "".join(
        f'<rect x="{x}" y="{y}" width="84" height="22" rx="11" fill="{fill}" stroke="#333"/>'
        f'<text x="{x + 42}" y="{y + 15}" text-anchor="middle" font-size="11" fill="#111">{escape(_wrapped(name))}</text>'
        for name, x, y, fill in ((subject, 4, 4, "#dce9f7"), (object_, 44, 70, "#f7e3d9"))
    )
    return (
        f'<svg class="graph" viewBox="0 0 132 96" role="img" aria-label="scene graph: {said}">{nodes}'
        '<path d="M46 26 L82 64" stroke="#333" fill="none"/><path d="M86 69 L84 60 L78 65 Z" fill="#333"/>'
        f'<text x="72" y="46" font-size="11" fill="#111">{escape(_wrapped(predicate))}</text></svg>'
    )
