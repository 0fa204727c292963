"""A sheet of pictures for the README: random triples, the same noise without adapter, under g⁺ and under g⁻."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import polars as pl

from sgpipe.evaluation.draws import BASE, NO_GRAPH
from sgpipe.evaluation.pictures import PictureFile
from sgpipe.params.evaluate import HEADLINE
from sgpipe.runs.atomic import atomic_path
from sgpipe.scene_graphs.hashing import hashed, text_ids

ROWS = ((BASE, NO_GRAPH, "base"), ("graph", "positive", "graph g⁺"), ("graph", "negative", "graph g⁻"))


def draw_sheet(images: Path, triples: Path, seed: int, count: int, out: Path) -> None:
    """Write a PNG of `count` val triples in columns, under neutral prompts; the choice depends on `seed` and the ids alone.

    `images` is the folder of the arms' pictures. Raises `DataError` where `base` or `graph` was not drawn.
    """
    files = {arm: PictureFile(images / arm) for arm, _, _ in ROWS}
    drawn = {arm: pl.DataFrame(file.items).with_row_index("row") for arm, file in files.items()}
    known = pl.read_parquet(triples).filter(pl.col("split") == "val")
    ids = known["triple_id"].to_list()
    chosen = [ids[i] for i in np.argsort(hashed(seed, "panels", text_ids(ids)), kind="stable")[:count]]
    first = drawn[BASE]["seed"].min()
    figure, axes = plt.subplots(
        len(ROWS), len(chosen), figsize=(1.15 * len(chosen), 3.9), squeeze=False, layout="constrained"
    )
    for column, triple in enumerate(chosen):
        said = known.row(by_predicate=pl.col("triple_id") == triple, named=True)
        axes[0][column].set_title(f"{said['subject']}\n{said['predicate']}\n{said['object']}", fontsize=8)
        for row, (arm, graph, label) in enumerate(ROWS):
            frame = drawn[arm].filter(
                (pl.col("triple_id") == triple)
                & (pl.col("prompt") == HEADLINE)
                & (pl.col("graph") == graph)
                & (pl.col("seed") == first)
            )
            axes[row][column].imshow(files[arm].read([frame.item(0, "row")])[0], interpolation="nearest")
            axes[row][column].set(xticks=[], yticks=[])
            if not column:
                axes[row][column].set_ylabel(label, fontsize=9)
    with atomic_path(out) as temporary:
        figure.savefig(temporary, format="png", dpi=100, metadata={"Software": None})
    plt.close(figure)
