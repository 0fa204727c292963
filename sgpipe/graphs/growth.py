"""The scene graph of a relation: its own triple, then others of its image that share an object with the graph."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from sgpipe.datasets.tables import BOX
from sgpipe.graphs.candidates import ORDER, candidates, combination_side, pair_sides
from sgpipe.graphs.config import Curate, GraphSize
from sgpipe.graphs.scene_graph import SceneGraph, Triple, combinations_of
from sgpipe.relations.predicates import PREDICATES
from sgpipe.runs.hashing import fraction
from sgpipe.runs.progress import through


@dataclass(frozen=True)
class PlacedGraph:
    """A graph with the box of every object, `[O, 4]` as x, y, w, h in pixels of the full image."""

    objects: tuple[str, ...]
    triples: tuple[Triple, ...]
    boxes: np.ndarray

    @property
    def scene(self) -> SceneGraph:
        """The graph without its boxes."""
        return SceneGraph(self.objects, self.triples)

    @property
    def region(self) -> np.ndarray:
        """The smallest box `[4]` around all objects."""
        low, high = self.boxes[:, :2].min(axis=0), (self.boxes[:, :2] + self.boxes[:, 2:]).max(axis=0)
        return np.concatenate([low, high - low])


def grow(
    row: Mapping[str, Any], around: Iterable[Mapping[str, Any]], most: int, allowed: Callable[[str, str], bool],
    meet: Callable[[tuple[str, str]], bool] = lambda combination: True,
) -> PlacedGraph:  # fmt: skip
    """The graph of a relation: its own triple, then relations of `around`, those of its image in the order in which they are
    taken, that share an object with the graph, up to `most` triples.

    Two objects are related once. A relation that brings an object is left out unless its name is `allowed` beside all others, and
    every relation unless its class may `meet` those that it meets at an object.
    So is one that calls an object by another name than the graph does: in Visual Genome one box is "taxi" here and "car" there.
    """
    number = {row["subject_id"]: 0, row["object_id"]: 1}
    names = [row["subject"], row["object"]]
    boxes = [[row[f"{side}{name}"] for name in BOX] for side in "so"]
    triples: list[Triple] = [(0, row["predicate"], 1)]
    related = {frozenset(number)}
    while len(triples) < most:
        for other in around:
            s, o = ends = other["subject_id"], other["object_id"]
            told = {s: other["subject"], o: other["object"]}
            new = [end for end in ends if end not in number]
            if len(new) == 2 or frozenset(ends) in related:
                continue
            if any(names[number[end]] != told[end] for end in ends if end in number):
                continue
            places = {end: number.get(end, len(names) + index) for index, end in enumerate(ends)}
            if not all(map(meet, combinations_of([*triples, (places[s], other["predicate"], places[o])]))):
                continue
            if all(allowed(told[end], known) for end in new for known in names):
                break
        else:
            break
        for end in new:
            number[end] = len(names)
            names.append(told[end])
            boxes.append([other[f"{'s' if end == s else 'o'}{name}"] for name in BOX])
        related.add(frozenset(ends))
        triples.append((number[s], other["predicate"], number[o]))
    return PlacedGraph(tuple(names), tuple(triples), np.array(boxes, np.float64))


class Graphs:
    """The scene graphs of relations.

    An object that is annotated twice in an image, with the same name and box, is one object here, whatever its ids.
    """

    def __init__(self, relations: pa.Table, images: pa.Table, objects: pa.Table, params: Curate) -> None:
        self._params = params
        self._by_image: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
        self._shown: dict[int, int] = {}
        further = params.several or params.several_train or params.combinations
        if max(params.graph.max, params.val_graph.max, params.several_graph.max if further else 1) > 1:
            around, _ = candidates(relations, images, params, PREDICATES)
            for row in _same_objects(around).sort(*ORDER).iter_rows(named=True):
                self._by_image[row["image_id"]].append(row)
        if params.whole:
            ends = [_end(pl.DataFrame(relations), side, name) for side, name in (("s", "subject"), ("o", "object"))]
            every = pl.concat([pl.DataFrame(objects).select("image_id", "name", *BOX), *ends]).unique()
            self._shown = dict(every.group_by("image_id").len().iter_rows())

    def of(self, frame: pl.DataFrame, split: str, size: GraphSize) -> list[PlacedGraph]:
        """Of each row, of as many triples as `size` asks for; of `whole` graphs, of as many as the image has, up to its most.

        No two objects of a train graph are a name pair of validation, and no two classes kept for it meet; with a development split
        what is kept for validation is in no graph at all.
        """
        params = self._params
        draw = fraction(params.seed, "graph size", frame["image_id"].to_numpy(), frame["relationship_id"].to_numpy())
        aims = size.min + (draw * (size.max - size.min + 1)).astype(np.int64)
        if params.whole:
            aims[:] = size.max

        @cache
        def allowed(one: str, other: str) -> bool:
            if one == other and params.quality.distinct_names:
                return False
            return pair_sides([(one, other)], params)[0] in (split, "train")

        @cache
        def meet(combination: tuple[str, str]) -> bool:
            return combination_side(combination, params) in (split, "train")

        rows = zip(_same_objects(frame).iter_rows(named=True), aims.tolist(), strict=True)
        seen = through(rows, "growing graphs", "graph", len(frame))
        return [grow(row, self._by_image[row["image_id"]], most, allowed, meet) for row, most in seen]

    def fitting(self, frame: pl.DataFrame, split: str, size: GraphSize) -> pl.DataFrame:
        """The rows whose graph reaches the least size and, if asked for, names every object of its image; `size`: its triples."""
        if size.min == 1 and not self._params.whole:
            return frame.with_columns(size=pl.lit(0))
        shown = [self._shown.get(image, 0) for image in frame["image_id"]] if self._params.whole else None
        made = self.of(frame, split, size)
        kept = [
            len(graph.triples) >= size.min and (shown is None or len(graph.objects) == shown[index])
            for index, graph in enumerate(made)
        ]
        sizes = [len(graph.triples) if self._params.whole else 0 for graph in made]
        return frame.with_columns(size=pl.Series(sizes, dtype=pl.Int32)).filter(pl.Series(kept, dtype=pl.Boolean))


def _end(relations: pl.DataFrame, side: str, name: str) -> pl.DataFrame:
    """The subjects or objects of relations as objects of their images."""
    return relations.select("image_id", pl.col(name).alias("name"), *(pl.col(f"{side}{each}").alias(each) for each in BOX))


def _same_objects(frame: pl.DataFrame) -> pl.DataFrame:
    """Relations whose ends have one number per image, name and box."""
    ends = (("s", "subject", "subject_id"), ("o", "object", "object_id"))
    numbers = {
        number: pl.struct(pl.col("image_id"), pl.col(name).alias("name"), *(pl.col(f"{side}{each}").alias(each) for each in BOX))
        for side, name, number in ends
    }
    return frame.with_columns(each.hash(0).alias(number) for number, each in numbers.items())
