"""A small made-up world of maps: where a class shows itself is chosen, so that what a probe can know is known."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from sgpipe.attention_maps.files import map_table, write_maps
from sgpipe.datasets.tables import MAP_ITEMS
from sgpipe.probes.config import Fitting, NoiseAware, Probes
from sgpipe.probes.data import MapSet, Pairs
from sgpipe.probes.jobs import Bench

CLASSES = ("above", "behind", "on")
"""In the order of `PREDICATES`."""
SHAPE = (3, 4, 4)
NOUNS = ("dog", "cat", "hat", "box")
SMALL = Probes(
    epochs={"mlp": 12, "cnn": 2},
    features=("saliency", "concat"),
    seeds=2,
    shuffled_seeds=1,
    folds=4,
    resamples=100,
    fitting=Fitting(batch_size=16, learning_rate={"mlp": 0.01, "cnn": 0.01}, patience=6),
    noise_aware=NoiseAware(probe="mlp", feature="concat", epochs=12),
)


def triples(per_class: int = 24, classes: Sequence[str] = CLASSES) -> pa.Table:
    """`per_class` triples of each class over all pairs of names in turn, each of an image of its own."""
    pairs = [(a, b) for a in NOUNS for b in NOUNS if a != b]
    rows = [
        {"triple_id": f"{c}-{i}", "image_id": c * per_class + i, "subject": pairs[i % 12][0], "predicate": name,
         "object": pairs[i % 12][1]}
        for c, name in enumerate(classes)
        for i in range(per_class)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows)


def pattern(names: Sequence[str | None], seed: int, noise: float = 0.3) -> Tensor:
    """Maps `[B, K, H, W]` whose relation map has a bright row per class, none for None, among noise."""
    maps = noise * torch.randn(len(names), *SHAPE, generator=torch.Generator().manual_seed(seed))
    for i, name in enumerate(names):
        if name is not None:
            maps[i, 1, CLASSES.index(name)] += 1
    return maps


def write_generated(table: pa.Table, path: Path, seed: int = 0) -> None:
    """Maps of sampled images, a row group per 10, that show the class of their triple."""
    rows = [
        {"triple_id": t["triple_id"], "predicate": t["predicate"], "condition": "relational",
         "prompt_predicate": t["predicate"], "t": None}
        for t in table.to_pylist()
    ]  # fmt: skip
    _write(rows, [row["predicate"] for row in rows], path, seed)


def write_noised(table: pa.Table, path: Path, follows: str, seed: int = 1, times: Sequence[float] = (0.5, 0.75)) -> None:
    """Maps of noised images under the three prompts, which show the class of the `image` or the one that the prompt says."""
    rows = []
    for i, t in enumerate(table.to_pylist()):
        other = CLASSES[(CLASSES.index(t["predicate"]) + 1 + i % 2) % 3]
        for condition, said in (("relational", t["predicate"]), ("wrong", other), ("neutral", None)):
            for time in times:
                rows.append(
                    {"triple_id": t["triple_id"], "predicate": t["predicate"], "condition": condition,
                     "prompt_predicate": said, "t": time}
                )  # fmt: skip
    _write(rows, [row["predicate" if follows == "image" else "prompt_predicate"] for row in rows], path, seed)


def _write(rows: list[dict], shown: Sequence[str | None], path: Path, seed: int) -> None:
    saliency, cross = pattern(shown, seed), 40 * pattern(shown, seed + 100)
    items = pa.Table.from_pylist(rows, schema=MAP_ITEMS)
    parts = [slice(i, i + 10) for i in range(0, len(rows), 10)]
    tables = (map_table(items.slice(p.start, 10), saliency[p], cross[p]) for p in parts)
    write_maps(tables, path, {"shape": SHAPE, "blocks": "[0..1]", "group": path.stem})


def embeddings() -> dict[str, Tensor]:
    """A vector per name."""
    draw = torch.Generator().manual_seed(9)
    return {name: torch.randn(6, generator=draw) for name in NOUNS}


def make_bench(folder: Path, follows: str = "image", params: Probes = SMALL, table: pa.Table | None = None) -> Bench:
    """The world's maps in `folder`, opened; of other triples where they are given."""
    table = triples() if table is None else table
    write_generated(table, folder / "generated.parquet")
    write_noised(table, folder / "noised.parquet", follows)
    pairs = Pairs(table)
    sets = (MapSet(folder / f"{name}.parquet", pairs) for name in ("generated", "noised"))
    return Bench(*sets, pairs, embeddings(), params, torch.device("cpu"))


class Rows:
    """A source that holds its inputs."""

    def __init__(self, inputs: Tensor) -> None:
        self.inputs = inputs

    def batch(self, rows: np.ndarray) -> Tensor:
        return self.inputs[torch.from_numpy(rows)]
