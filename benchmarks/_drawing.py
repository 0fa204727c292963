"""What the pictures of the documentation are drawn with: sheets of images, diagrams of boxes and arrows, small PNGs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import polars as pl
from matplotlib.figure import Figure
from PIL import Image

from sgpipe.runs.atomic import atomic_path

OUTPUTS = Path("outputs")
GIVEN, FROZEN, TRAINED, RESULT = "#eceff3", "#dce9f7", "#f9dcc9", "#dcefe0"
"""What is given; what is not trained; what is trained or written by you; what comes out."""


@dataclass(frozen=True)
class Node:
    """A box of `width` × `height` around (`x`, `y`), or an image in its place."""

    x: float
    y: float
    text: str
    colour: str = GIVEN
    width: float = 2.0
    height: float = 0.8
    image: Any = None


def save_png(figure: Figure, out: Path, colours: int | None = 192) -> None:
    """Write the figure without its margins as a PNG of few colours, or of all."""
    stream = BytesIO()
    figure.savefig(stream, format="png", dpi=110, bbox_inches="tight", pad_inches=0.08, metadata={"Software": None})
    image = Image.open(stream).convert("RGB")
    with atomic_path(out) as temporary:
        (image.quantize(colours, dither=Image.Dither.NONE) if colours else image).save(temporary, format="PNG", optimize=True)


def diagram(
    out: Path,
    size: tuple[float, float],
    nodes: Mapping[str, Node],
    arrows: Sequence[tuple[str, str, str]],
    notes: Sequence[Node] = (),
) -> None:
    """Write boxes and arrows; an arrow is (from, to, words beside it). `notes` are texts without a box.

    `size` is in inches and in units of `nodes`.
    """
    figure = Figure(figsize=size)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set(xlim=(0, size[0]), ylim=(0, size[1]))
    axes.axis("off")
    for start, end, words in arrows:
        a, b = nodes[start], nodes[end]
        patch_a, patch_b = _border(a, b), _border(b, a)
        axes.annotate("", patch_b, patch_a, arrowprops={"arrowstyle": "-|>", "color": "#444", "shrinkA": 0, "shrinkB": 1})
        x, y = (patch_a[0] + patch_b[0]) / 2, (patch_a[1] + patch_b[1]) / 2
        if words:
            axes.text(
                x, y, words, ha="center", va="center", fontsize=8, bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5}
            )
    for node in (*nodes.values(), *notes):
        left, low = node.x - node.width / 2, node.y - node.height / 2
        if node.image is not None:
            axes.imshow(
                node.image,
                extent=(left, left + node.width, low, low + node.height),
                interpolation="nearest",
                zorder=2,
                aspect="auto",
            )
            axes.text(node.x, low - 0.05, node.text, ha="center", va="top", fontsize=8)
            continue
        if node not in notes:
            axes.add_patch(_box(left, low, node))
        axes.text(node.x, node.y, node.text, ha="center", va="center", fontsize=9 if node not in notes else 8, zorder=3)
    axes.set(xlim=(0, size[0]), ylim=(0, size[1]))
    save_png(figure, out, 64 if all(node.image is None for node in nodes.values()) else 192)


def _box(left: float, low: float, node: Node) -> Any:
    from matplotlib.patches import FancyBboxPatch

    style = "round,pad=0,rounding_size=0.08"
    return FancyBboxPatch((left, low), node.width, node.height, boxstyle=style, facecolor=node.colour, edgecolor="#555", zorder=2)


def _border(a: Node, b: Node) -> tuple[float, float]:
    """Where an arrow to b leaves a: the middle of the side that looks at b."""
    dx, dy = b.x - a.x, b.y - a.y
    if abs(dx) > (a.width + b.width) / 2:
        return a.x + (a.width if dx > 0 else -a.width) / 2, a.y
    return a.x, a.y + (a.height if dy > 0 else -a.height) / 2


def curated(split: str, predicates: tuple[str, ...], each: int, side: int = 192) -> list[tuple[dict[str, Any], Image.Image]]:
    """The first `each` curated triples of every class in a split, with their crops enlarged to `side` pixels."""
    from sgpipe.datasets.config import Data
    from sgpipe.datasets.images import ImageStore, open_images
    from sgpipe.params.load import read_params

    data = read_params(Data)
    store, found = ImageStore(open_images(data)), []
    name = "map_triples" if split == "maps" else "triples"
    rows = pl.read_parquet(OUTPUTS / f"curated/{name}.parquet").filter(pl.col("split") == split)
    for predicate in predicates:
        for row in rows.filter(pl.col("predicate") == predicate).head(each).to_dicts():
            x, y, w, h = (round(row[f"crop_{axis}"]) for axis in "xywh")
            crop = Image.fromarray(store.load(row["image_id"]).pixels).crop((x, y, x + w, y + h))
            found.append((row, crop.resize((side, side), Image.Resampling.NEAREST)))
    return found


def grid(columns: int, rows: int, width: float = 1.7, height: float = 2.0) -> tuple[Figure, Any]:
    """A figure of axes without ticks."""
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_color("#999")
    return figure, axes
