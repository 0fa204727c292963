"""Balanced train, val and map triples from canonical relations, with a choice that depends on the seed and not on row order.

A class takes its lowest ranks (`candidates`).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from sgpipe.datasets.tables import CROP, OBJECTS, TRIPLES
from sgpipe.errors import DataError
from sgpipe.graphs.candidates import ORDER, boxes_of, candidates, sizes_of
from sgpipe.graphs.config import Crop, Curate, GraphSize
from sgpipe.graphs.growth import Graphs, PlacedGraph
from sgpipe.graphs.kept_apart import KeptApart
from sgpipe.graphs.prompts import mention_order, words
from sgpipe.graphs.scene_graph import SceneGraph
from sgpipe.relations.boxes import square_crop, union
from sgpipe.relations.predicates import concepts
from sgpipe.runs.hashing import fraction
from sgpipe.runs.progress import tick

STEPS: Final = 5
"""Ticks of `curate`: the candidates, what their graphs grow from, and the triples of val, train and maps."""


@dataclass(frozen=True)
class Curated:
    """The chosen triples and what the choice was made from."""

    triples: pa.Table
    map_triples: pa.Table
    metrics: dict[str, Any]


def choose(frame: pl.DataFrame, split: str, classes: tuple[str, ...], count: int, per_pair: int) -> pl.DataFrame:
    """The first `count` of each class by rank among the name pairs of `split`, annotated relations first.

    Of graphs of several sizes each size gives its first, then each its second, and so on. Rows come by class and in this order; a
    class that is too small gives what it has. Rows that are `needed` come before all others of their class.
    """
    frame = frame.filter((pl.col("side") == split) & pl.col("predicate").is_in(list(classes)))
    frame = frame.sort("predicate", *ORDER).with_columns(turn=pl.int_range(pl.len()).over("predicate", "size"))
    first = [~pl.col("needed")] if "needed" in frame.columns else []
    frame = frame.sort("predicate", *first, *(["turn"] if (frame["size"] > 0).any() else []), *ORDER)
    if per_pair:
        frame = frame.filter(pl.int_range(pl.len()).over("predicate", "subject", "object") < per_pair)
    return frame.filter(pl.int_range(pl.len()).over("predicate") < count)


def crops(frame: pl.DataFrame, params: Crop, regions: np.ndarray | None = None) -> np.ndarray:
    """`[N, 4]` region of the image that stands for each row: the full image, or the square around both boxes, or `regions`."""
    width, height = sizes_of(frame)
    if params.kind == "image":
        return np.stack([np.zeros_like(width), np.zeros_like(height), width, height], axis=1)
    if regions is None:
        regions = union(boxes_of(frame, "s"), boxes_of(frame, "o"))
    return square_crop(regions, params.margin, width, height, params.min_side, params.align)


def triples_table(frame: pl.DataFrame, split: str, graphs: Sequence[PlacedGraph], params: Curate) -> pa.Table:
    """Chosen rows as triples with their graphs: prompts, concepts and crop. A hash orders the names of the neutral prompt."""
    image, relation = frame["image_id"].to_numpy(), frame["relationship_id"].to_numpy()
    draws = fraction(params.seed, "mention order", image, relation).tolist()
    said = zip(frame["subject"], frame["predicate"], frame["object"], strict=True)
    crop = crops(frame, params.crop, np.array([graph.region for graph in graphs]).reshape(-1, 4))
    scenes = [graph.scene for graph in graphs]
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

    Ticks `STEPS` times. Raises `DataError` naming every class that is too small, unless `allow_short`, and if none is left.
    """
    ranked, rejected = candidates(relations, images, params)
    tick()
    graphs = Graphs(relations, images, objects, params)
    tick()
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
    beside: dict[str, int] = {}
    kept_apart, own = KeptApart([], {}), pl.col("predicate").is_in(list(params.predicates))

    def of_images(split: str, side: str, size: GraphSize) -> pl.DataFrame:
        """Candidates among the images of a split and the name pairs of a side, with graphs of this size; with a development split,
        among train images, of which training leaves out its own."""
        of_split = pl.col("image_split") == ("train" if params.dev else split)
        return graphs.fitting(ranked.filter(of_split & ~pl.col("image_id").is_in(taken) & (pl.col("side") == side)), side, size)

    def without_images(frame: pl.DataFrame, other: pl.DataFrame) -> pl.DataFrame:
        return frame.filter(~pl.col("image_id").is_in(other["image_id"].to_list()))

    def scenes_of(frame: pl.DataFrame, side: str, size: GraphSize) -> list[SceneGraph]:
        return [graph.scene for graph in graphs.of(frame, side, size)]

    def further(name: str, split: str, side: str, frame: pl.DataFrame) -> pl.DataFrame:
        """The first of each image of `frame` by rank, as many as knob `name` says, join the split as graphs of `several_graph`."""
        count = getattr(params, name)
        more = frame.sort(*ORDER).unique("image_id", keep="first", maintain_order=True).head(count)
        short.extend([f"{name} {more.height} of {count}"] if more.height < count else [])
        added = triples_table(more, split, graphs.of(more, side, params.several_graph), params)
        tables[split], beside[name] = pa.concat_tables([tables[split], added]), more.height
        return more

    for name, (split, classes, count, per_pair, size) in wanted.items():
        frame = of_images(split, split, size)
        if name == "train" and params.combinations:
            frame = kept_apart.prepared(frame, scenes_of(frame, split, size))
        chosen = choose(frame, split, classes, count, per_pair)
        have = dict(chosen.group_by("predicate").len().iter_rows())
        found[name] = {predicate: have.get(predicate, 0) for predicate in classes}
        short += [f"{name} {predicate} {n} of {count}" for predicate, n in found[name].items() if n < count]
        tables[name] = triples_table(chosen, name, graphs.of(chosen, split, size), params)
        if name == "val":
            taken = chosen["image_id"].to_list()
            if params.several:
                more = further("several", "val", "val", of_images("val", "val", params.several_graph).filter(own))
                taken += more["image_id"].to_list()
            if params.combinations:
                frame = of_images("val", "train", params.several_graph).filter(own).sort(*ORDER)
                if params.dev:
                    of_dev = fraction(params.seed, "dev image", frame["image_id"].to_numpy()) < params.dev
                    frame = frame.filter(pl.Series(of_dev))
                frame = frame.unique("image_id", keep="first", maintain_order=True)
                rest = without_images(of_images("train", "train", params.graph).filter(own), frame)
                of_val, shown = scenes_of(frame, "train", params.several_graph), scenes_of(rest, "train", params.graph)
                kept_apart = KeptApart.of(of_val, shown, rest, train, params.combinations)
                kept = frame.filter(pl.int_range(pl.len()).is_in(kept_apart.rows))
                taken += further("combinations", "val", "train", kept)["image_id"].to_list()
        elif name == "train" and params.several_train:
            frame = without_images(of_images("train", "train", params.several_graph).filter(own), chosen)
            if params.combinations:
                frame = kept_apart.prepared(frame, scenes_of(frame, "train", params.several_graph))
            further("several_train", "train", "train", frame)
        tick()
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
        **({"further": beside} if beside else {}),
        "shortfall": {name: sum(max(wanted[name][2] - n, 0) for n in found[name].values()) for name in wanted},
    }
    return Curated(pa.concat_tables([tables["train"], tables["val"]]), tables["maps"], metrics)
