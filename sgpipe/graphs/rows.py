"""Scene graphs as columns of a table, and how a triple's graph grows by what else its image states of the same objects."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from sgpipe.datasets.tables import TRIPLES
from sgpipe.graphs.scene_graph import SceneGraph, Triple

COLUMNS = ("objects", "boxes", "triples")
Allowed = Callable[[str, str], bool]
"""Whether two names may be in one graph."""


def graph_of(row: Mapping[str, Any]) -> SceneGraph:
    """The scene graph in the columns `objects`, `boxes` and `triples` of a row of curated triples."""
    triples = ((each["subject"], each["predicate"], each["object"]) for each in row["triples"])
    return SceneGraph(tuple(row["objects"]), tuple(triples), tuple(tuple(box) for box in row["boxes"]))


def graphs_of(triples: pa.Table) -> list[SceneGraph]:
    """`graph_of` of every row."""
    return [graph_of(row) for row in triples.select(COLUMNS).to_pylist()]


@dataclass(frozen=True)
class PlacedGraph:
    """A graph with the box of every object, `[O, 4]` as x, y, w, h in pixels of the full image."""

    objects: tuple[str, ...]
    triples: tuple[Triple, ...]
    boxes: NDArray[np.float64]

    @property
    def region(self) -> NDArray[np.float64]:
        """The smallest box `[4]` around all objects."""
        low, high = self.boxes[:, :2].min(axis=0), (self.boxes[:, :2] + self.boxes[:, 2:]).max(axis=0)
        return np.concatenate([low, high - low])


def columns_of(graphs: Sequence[PlacedGraph], crops: NDArray[np.float64]) -> dict[str, pa.Array]:
    """The columns that `graph_of` reads, with boxes as fractions of the crops `[N, 4]`."""
    values: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    for graph, crop in zip(graphs, crops, strict=True):
        boxes = (graph.boxes - [*crop[:2], 0, 0]) / np.tile(crop[2:], 2)
        values["objects"].append(list(graph.objects))
        values["boxes"].append(boxes.astype(np.float32).tolist())
        values["triples"].append([{"subject": s, "predicate": p, "object": o} for s, p, o in graph.triples])
    return {name: pa.array(values[name], TRIPLES.field(name).type) for name in COLUMNS}


class Surroundings:
    """All relations of the images, from which the graph of one of them grows."""

    def __init__(self, relations: pl.DataFrame) -> None:
        """`relations` have the columns of canonical ones, in the order in which they are taken."""
        self._by_image: dict[int, list[dict[str, Any]]] = {}
        for row in relations.iter_rows(named=True):
            self._by_image.setdefault(row["image_id"], []).append(row)

    def grow(self, row: Mapping[str, Any], most: int, allowed: Allowed) -> PlacedGraph:
        """The graph of a relation: its own triple, then relations that share an object with the graph, up to `most` triples.

        Two objects are related once. A relation that brings an object is left out unless its name is `allowed` beside all others.
        So is one that calls an object by another name than the graph does: in Visual Genome one box is "taxi" here and "car" there.
        """
        number = {row["subject_id"]: 0, row["object_id"]: 1}
        names, boxes = [row["subject"], row["object"]], [_box(row, "s"), _box(row, "o")]
        triples: list[Triple] = [(0, row["predicate"], 1)]
        related = {frozenset(number)}
        rest = self._by_image.get(row["image_id"], [])
        while len(triples) < most:
            for other in rest:
                s, o = ends = other["subject_id"], other["object_id"]
                told = dict(zip(ends, (other["subject"], other["object"]), strict=True))
                new = [end for end in ends if end not in number]
                if len(new) == 2 or frozenset(ends) in related:
                    continue
                if any(names[number[end]] != told[end] for end in ends if end in number):
                    continue
                if all(allowed(told[end], known) for end in new for known in names):
                    break
            else:
                break
            for end in new:
                number[end] = len(names)
                names.append(told[end])
                boxes.append(_box(other, "s" if end == s else "o"))
            related.add(frozenset(ends))
            triples.append((number[s], other["predicate"], number[o]))
        return PlacedGraph(tuple(names), tuple(triples), np.array(boxes, np.float64))


def _box(row: Mapping[str, Any], side: str) -> list[float]:
    return [row[f"{side}{name}"] for name in "xywh"]
