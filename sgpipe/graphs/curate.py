"""Balanced train, val and map triples from canonical relations, with a choice that depends on the seed and not on row order.

Every relation gets a rank: a hash of the seed, its image and its id. A class takes its lowest ranks. Name pairs are dealt to
train or val by hash as well, so no two names, in either order, are in both; images keep the split that canonicalize gave them.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from sgpipe.datasets.tables import BOX, CROP, OBJECTS, TRIPLES
from sgpipe.errors import DataError
from sgpipe.graphs.config import Crop, Curate, GraphSize, Quality
from sgpipe.graphs.prompts import mention_order, words
from sgpipe.graphs.scene_graph import SceneGraph, Triple, combinations_of
from sgpipe.relations.boxes import overlap, square_crop, union
from sgpipe.relations.predicates import PREDICATES, concepts
from sgpipe.runs.hashing import fraction, hashed, text_ids

_ORDER = ("derived", "rank", "image_id", "relationship_id")
"""Annotated relations first, then by rank."""


@dataclass(frozen=True)
class Curated:
    """The chosen triples and what the choice was made from."""

    triples: pa.Table
    map_triples: pa.Table
    metrics: dict[str, Any]


def boxes_of(frame: pl.DataFrame, side: str) -> np.ndarray:
    """`[N, 4]` boxes of the subjects (`s`) or objects (`o`)."""
    return frame.select([f"{side}{name}" for name in BOX]).to_numpy().astype(np.float64)


def _sizes_of(frame: pl.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    return frame["width"].to_numpy().astype(np.float64), frame["height"].to_numpy().astype(np.float64)


def quality_misses(frame: pl.DataFrame, params: Quality) -> dict[str, np.ndarray]:
    """For each bound, which rows miss it. `frame` has the columns of relations, `width` and `height`."""
    s, o = boxes_of(frame, "s"), boxes_of(frame, "o")
    width, height = _sizes_of(frame)
    areas = np.stack([s[:, 2] * s[:, 3], o[:, 2] * o[:, 3]])
    distance = np.linalg.norm(s[:, :2] + s[:, 2:] / 2 - o[:, :2] - o[:, 2:] / 2, axis=1)
    words = np.maximum(*(frame[name].str.count_matches(" ").to_numpy() + 1 for name in ("subject", "object")))
    return {
        "area": areas.min(axis=0) < params.min_area * width * height,
        "side": np.minimum(s[:, 2:].min(axis=1), o[:, 2:].min(axis=1)) < params.min_side,
        "overlap": overlap(s, o) > params.max_overlap,
        "size ratio": areas.max(axis=0) > params.max_size_ratio * areas.min(axis=0),
        "distance": distance > params.max_distance * np.hypot(width, height),
        "long name": words > params.max_name_words,
        "same name": (frame["subject"] == frame["object"]).to_numpy() & params.distinct_names,
    }


def pair_sides(pairs: Iterable[tuple[str, str]], params: Curate) -> np.ndarray:
    """`val` for pairs of names that are kept for validation, in either order, else `train`.

    With a development split it takes its share of the train pairs as `val`, and those kept for validation are `unused`.
    """
    pair = text_ids(["\n".join(sorted(two)) for two in pairs])
    return _side(fraction(params.seed, "pair", pair), params.val_pairs, params.dev * (1 - params.val_pairs))


def _side(draws: np.ndarray, val: float, dev: float) -> np.ndarray:
    """`val` for draws below `val`, else `train`; with `dev`, `unused` for those, `val` for the next `dev`."""
    if not dev:
        return np.where(draws < val, "val", "train")
    return np.select([draws < val, draws < val + dev], ["unused", "val"], "train")


def combination_side(combination: tuple[str, str], params: Curate) -> str:
    """`val` for two classes that may meet at an object in val graphs alone, else `train`; with a development split as
    `pair_sides`, which takes as many combinations as validation."""
    draw = fraction(params.seed, "combination", text_ids(["\n".join(combination)]))
    return str(_side(draw, params.val_combinations, params.val_combinations if params.dev else 0)[0])


def candidates(
    relations: pa.Table, images: pa.Table, params: Curate, classes: Collection[str] = ()
) -> tuple[pl.DataFrame, dict[str, int]]:
    """Relations of `classes` (by default those that triples are chosen of) that pass the quality bounds, ranked, and how many each
    bound rejected (the first that was missed).
    """
    wanted = sorted(classes or {*params.predicates, *params.map_predicates})
    frame = pl.DataFrame(relations).filter(pl.col("predicate").is_in(wanted))
    if not params.geometric:
        frame = frame.filter(pl.col("source") == "annotated")
    sizes = pl.DataFrame(images).select("image_id", "width", "height", pl.col("split").alias("image_split"))
    frame = frame.join(sizes, on="image_id", how="inner")
    frame = frame.sort("image_id", "relationship_id").unique(
        ["image_id", "subject_id", "predicate", "object_id"], keep="last", maintain_order=True
    )
    misses = quality_misses(frame, params.quality)
    passed = np.ones(len(frame), dtype=bool)
    rejected: dict[str, int] = {}
    for name, missed in misses.items():
        rejected[name] = int((passed & missed).sum())
        passed &= ~missed
    frame = frame.filter(pl.Series(passed))
    rank = hashed(params.seed, "curate", frame["image_id"].to_numpy(), frame["relationship_id"].to_numpy())
    side = pair_sides(zip(frame["subject"], frame["object"], strict=True), params)
    return frame.with_columns(
        rank=pl.Series(rank, dtype=pl.UInt64), side=pl.Series(side, dtype=pl.String), derived=pl.col("source") != "annotated"
    ), rejected


def choose(frame: pl.DataFrame, split: str, classes: tuple[str, ...], count: int, per_pair: int) -> pl.DataFrame:
    """The first `count` of each class by rank among the name pairs of `split`, annotated relations first.

    Of graphs of several sizes each size gives its first, then each its second, and so on. Rows come by class and in this order; a
    class that is too small gives what it has.
    """
    frame = frame.filter((pl.col("side") == split) & pl.col("predicate").is_in(list(classes)))
    frame = frame.sort("predicate", *_ORDER).with_columns(turn=pl.int_range(pl.len()).over("predicate", "size"))
    frame = frame.sort("predicate", *(["turn"] if (frame["size"] > 0).any() else []), *_ORDER)
    if per_pair:
        frame = frame.filter(pl.int_range(pl.len()).over("predicate", "subject", "object") < per_pair)
    return frame.filter(pl.int_range(pl.len()).over("predicate") < count)


def crops(frame: pl.DataFrame, params: Crop, regions: np.ndarray | None = None) -> np.ndarray:
    """`[N, 4]` region of the image that stands for each row: the full image, or the square around both boxes, or `regions`."""
    width, height = _sizes_of(frame)
    if params.kind == "image":
        return np.stack([np.zeros_like(width), np.zeros_like(height), width, height], axis=1)
    if regions is None:
        regions = union(boxes_of(frame, "s"), boxes_of(frame, "o"))
    return square_crop(regions, params.margin, width, height, params.min_side, params.align)


@dataclass(frozen=True)
class PlacedGraph:
    """A graph with the box of every object, `[O, 4]` as x, y, w, h in pixels of the full image."""

    objects: tuple[str, ...]
    triples: tuple[Triple, ...]
    boxes: np.ndarray

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
        if max(params.graph.max, params.val_graph.max, params.several_graph.max if params.several else 1) > 1:
            around, _ = candidates(relations, images, params, PREDICATES)
            for row in _same_objects(around).sort(*_ORDER).iter_rows(named=True):
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
        return [grow(row, self._by_image[row["image_id"]], most, allowed, meet) for row, most in rows]

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


def triples_table(frame: pl.DataFrame, split: str, graphs: Sequence[PlacedGraph], params: Curate) -> pa.Table:
    """Chosen rows as triples with their graphs: prompts, concepts and crop. A hash orders the names of the neutral prompt."""
    image, relation = frame["image_id"].to_numpy(), frame["relationship_id"].to_numpy()
    draws = fraction(params.seed, "mention order", image, relation).tolist()
    said = zip(frame["subject"], frame["predicate"], frame["object"], strict=True)
    crop = crops(frame, params.crop, np.array([graph.region for graph in graphs]).reshape(-1, 4))
    scenes = [SceneGraph(graph.objects, graph.triples) for graph in graphs]
    columns: dict[str, Any] = {
        "triple_id": [f"{i}-{r}" for i, r in zip(image.tolist(), relation.tolist(), strict=True)],
        "split": pa.repeat(split, len(frame)),
        "prompt": [words(scene) for scene in scenes],
        "neutral_prompt": [
            words(scene, "neutral", mention_order(len(scene.objects), draw)) for scene, draw in zip(scenes, draws, strict=True)
        ],
        "concepts": [concepts(*triple) for triple in said],
        "objects": [graph.objects for graph in graphs],
        "boxes": [
            ((graph.boxes - [*region[:2], 0, 0]) / np.tile(region[2:], 2)).astype(np.float32).tolist()
            for graph, region in zip(graphs, crop, strict=True)
        ],
        "triples": [[{"subject": s, "predicate": p, "object": o} for s, p, o in graph.triples] for graph in graphs],
    }
    columns |= {name: crop[:, i].astype(np.float32) for i, name in enumerate(CROP)}
    columns |= {name: frame[name].to_arrow() for name in TRIPLES.names if name in frame.columns}
    return pa.table(columns, schema=TRIPLES)


def curate(relations: pa.Table, images: pa.Table, params: Curate, objects: pa.Table = OBJECTS.empty_table()) -> Curated:
    """Choose the triples; `objects` are those of all images, for `whole` graphs.

    Raises `DataError` naming every class that is too small, unless `allow_short`, and if none is left.
    """
    ranked, rejected = candidates(relations, images, params)
    graphs = Graphs(relations, images, objects, params)
    train, val = params.train // len(params.predicates), params.val // len(params.predicates)
    wanted = {
        "val": ("val", params.predicates, val, params.max_per_pair, params.val_graph),
        "train": ("train", params.predicates, train, params.max_per_pair, params.graph),
        "maps": ("train", params.map_predicates, params.maps_per_class, 0, params.graph),
    }
    tables: dict[str, pa.Table] = {}
    found: dict[str, dict[str, int]] = {}
    short: list[str] = []
    taken: list[int] = []

    def chosen_of(split: str, classes: tuple[str, ...], count: int, per_pair: int, size: GraphSize) -> pl.DataFrame:
        """Among the images of the split; with a development split, among train images, of which training leaves out its own."""
        own = ranked.filter((pl.col("image_split") == ("train" if params.dev else split)) & ~pl.col("image_id").is_in(taken))
        return choose(graphs.fitting(own, split, size), split, classes, count, per_pair)

    for name, (split, classes, count, per_pair, size) in wanted.items():
        chosen = chosen_of(split, classes, count, per_pair, size)
        have = dict(chosen.group_by("predicate").len().iter_rows())
        found[name] = {predicate: have.get(predicate, 0) for predicate in classes}
        short += [f"{name} {predicate} {n} of {count}" for predicate, n in found[name].items() if n < count]
        tables[name] = triples_table(chosen, name, graphs.of(chosen, split, size), params)
        if name == "val":
            taken = chosen["image_id"].to_list()
            if params.several:
                size = params.several_graph
                rest = chosen_of("val", params.predicates, ranked.height, 0, size).sort(*_ORDER)
                more = rest.unique("image_id", keep="first", maintain_order=True).head(params.several)
                short += [f"several {more.height} of {params.several}"] if more.height < params.several else []
                tables[name] = pa.concat_tables([tables[name], triples_table(more, "val", graphs.of(more, "val", size), params)])
                taken += more["image_id"].to_list()
    if short and not params.allow_short:
        raise DataError(
            f"curate: too few relations after the quality filters: {'; '.join(short)}; lower the counts or the bounds in "
            "curate.quality, let canonicalize.geometric add relations, or set curate.allow_short"
        )
    if not any(table.num_rows for table in tables.values()):
        missed = ", ".join(f"{name} {count}" for name, count in rejected.items() if count)
        raise DataError(
            f"curate: no triple is left of {relations.num_rows} relations: {len(ranked)} of the chosen predicates pass "
            "curate.quality"
            + (f" (rejected: {missed})" if missed else "")
            + "; lower its bounds, choose other predicates or counts, or see the splits in canonicalize"
        )
    sizes = {name: Counter(pc.list_value_length(table["triples"]).to_pylist()) for name, table in tables.items()}
    metrics: dict[str, Any] = {
        name: {
            "triples": table.num_rows,
            "by_class": found[name],
            "by_graph_size": {str(size): sizes[name][size] for size in sorted(sizes[name])},
        }
        for name, table in tables.items()
    }
    metrics |= {
        "candidates": len(ranked),
        "filtered": rejected,
        "shortfall": {name: sum(max(wanted[name][2] - n, 0) for n in found[name].values()) for name in wanted},
    }
    return Curated(pa.concat_tables([tables["train"], tables["val"]]), tables["maps"], metrics)
