"""Contact sheets: sampled images with the maps of their three concepts over them, for each layer group."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sgpipe.runs.atomic import atomic_path


@dataclass(frozen=True)
class Row:
    """One image `[S, S, 3]` (0–255), its concepts, and its maps `[K, H, W]` by group."""

    image: NDArray[np.uint8]
    concepts: Sequence[str]
    maps: Mapping[str, NDArray[np.floating]]


def write_sheet(title: str, rows: Sequence[Row], path: Path) -> None:
    """A page: a row per image, then for each group its maps, brightness from each map's least to its greatest value."""
    groups = list(rows[0].maps)
    columns = 1 + sum(len(rows[0].concepts) for _ in groups)
    figure = Figure(figsize=(1.05 * columns, 1.28 * len(rows) + 0.85), dpi=80)
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for line, row in zip(axes, rows, strict=True):
        cells = iter(line)
        image = next(cells)
        image.imshow(row.image, interpolation="nearest")
        for group in groups:
            for concept, values in zip(row.concepts, row.maps[group], strict=True):
                cell = next(cells)
                cell.imshow(row.image, interpolation="nearest", alpha=0.35)
                side = row.image.shape[0]
                cell.imshow(values.astype(np.float32), cmap="magma", alpha=0.7, extent=(-0.5, side - 0.5, side - 0.5, -0.5))
                cell.set_title(concept, fontsize=7, pad=2)
        for cell in line:
            cell.set_axis_off()
    for index, group in enumerate(groups):
        first = axes[0][1 + index * len(rows[0].concepts)]
        first.annotate(group, (0, 1.32), xycoords="axes fraction", fontsize=9, fontweight="bold", annotation_clip=False)
    figure.suptitle(title, fontsize=10, x=0.02, ha="left")
    figure.subplots_adjust(0.01, 0.01, 0.99, 1 - 0.8 / figure.get_figheight(), 0.06, 0.2)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})
