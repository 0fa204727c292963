"""The effect of each block and step for one prompt and graph, as an image for a person."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sgpipe.localisation.config import Rows
from sgpipe.localisation.patching import Place, effects, walk
from sgpipe.localisation.runs import Runs
from sgpipe.runs.progress import tick


def effect_maps(runs: Runs, blocks: Sequence[int], rows: Sequence[Rows]) -> dict[Rows, NDArray[np.float64]]:
    """Effects `[blocks, active steps]` of g⁺ patched into g⁻, over the items, for each kind of rows; NaN where nothing differs."""
    places = [Place("denoising", (kind,)) for kind in rows]
    found: list[list[NDArray[np.float64]]] = []
    for at in walk(runs, ["negative"]):
        if at.records:
            sums = []
            for block in blocks:
                sums.append(effects(runs, at, block, places)[0])
                tick()
            with np.errstate(invalid="ignore", divide="ignore"):
                found.append([(each.projected.double().sum(1) / each.squared.double().sum(1)).numpy() for each in sums])
    return {kind: np.array([[each[i] for each in step] for step in found]).T for i, kind in enumerate(rows)}


def draw(maps: Mapping[Rows, NDArray[np.float64]], blocks: Sequence[str], times: Sequence[float], title: str, out: Path) -> None:
    """A panel of block × step for each kind of rows; `times` are those of the steps."""
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from sgpipe.runs.atomic import atomic_path

    figure = Figure(figsize=(2.2 + (0.9 + 0.45 * len(times)) * len(maps), 1.6 + 0.24 * len(blocks)), layout="constrained")
    FigureCanvasAgg(figure)
    colours = colormaps["viridis"].with_extremes(bad="lightgrey")
    axes = figure.subplots(1, len(maps), sharey=True, squeeze=False)[0]
    for axis, (kind, values) in zip(axes, maps.items(), strict=True):
        shown = axis.imshow(values, vmin=0, vmax=1, cmap=colours, aspect="auto", interpolation="nearest")
        for (row, column), value in np.ndenumerate(values):
            ink = "white" if not value > 0.6 else "black"
            said = f"{round(value, 2) + 0.0:.2f}" if np.isfinite(value) else "–"
            axis.text(column, row, said, ha="center", va="center", fontsize=6, color=ink)
        axis.set(title="pooled vector" if kind == "pooled" else f"{kind} rows", xlabel="time t (1: noise)")
        axis.set(xticks=range(len(times)), xticklabels=[f"{t:.2f}" for t in times])
    axes[0].set(ylabel="block", yticks=range(len(blocks)), yticklabels=blocks)
    figure.colorbar(shown, ax=list(axes), label="effect: 0 nothing changes, 1 the velocity of the run copied from")
    figure.suptitle(title, fontsize=9, wrap=True)
    with atomic_path(out) as temporary:
        figure.savefig(temporary, format="png", dpi=140, metadata={"Software": None})
