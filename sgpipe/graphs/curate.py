"""Balanced train, val and map triples from canonical relations, with a choice that depends on the seed and not on row order.

Every relation gets a rank: a hash of the seed, its image and its id. A class takes its lowest ranks. Name pairs are dealt to
train or val by hash as well, so no two names, in either order, are in both; images keep the split that canonicalize gave them.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from sgpipe.datasets.tables import TRIPLES
from sgpipe.errors import DataError
from sgpipe.graphs.config import Crop, Curate, Quality
from sgpipe.relations.boxes import overlap, square_crop, union
from sgpipe.relations.predicates import concepts, neutral_prompt, relational_prompt
from sgpipe.runs.hashing import fraction, hashed, text_ids

_BOXES = [f"{side}{name}" for side in "so" for name in "xywh"]


@dataclass(frozen=True)
class Curated:
    """The chosen triples and what the choice was made from."""

    triples: pa.Table
    map_triples: pa.Table
    metrics: dict[str, Any] = field(default_factory=dict)


def boxes_of(frame: pl.DataFrame, side: str) -> np.ndarray:
    """`[N, 4]` boxes of the subjects (`s`) or objects (`o`)."""
    return frame.select([f"{side}{name}" for name in "xywh"]).to_numpy().astype(np.float64)


def quality_misses(frame: pl.DataFrame, params: Quality) -> dict[str, np.ndarray]:
    """For each bound, which rows miss it. `frame` has the columns of relations, `width` and `height`."""
    s, o = boxes_of(frame, "s"), boxes_of(frame, "o")
    width, height = (
        frame["width"].to_numpy().astype(np.float64),
        frame["height"].to_numpy().astype(np.float64),
    )
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


def candidates(relations: pa.Table, images: pa.Table, params: Curate) -> tuple[pl.DataFrame, dict[str, int]]:
    """Relations that pass the quality bounds, ranked, and how many each bound turned away (the first that was missed)."""
    classes = sorted({*params.predicates, *params.map_predicates})
    frame = pl.DataFrame(relations).filter(pl.col("predicate").is_in(classes))
    if not params.geometric:
        frame = frame.filter(pl.col("source") == "annotated")
    sizes = pl.DataFrame(images).select("image_id", "width", "height", pl.col("split").alias("image_split"))
    frame = frame.join(sizes, on="image_id", how="inner")
    frame = frame.sort("image_id", "relationship_id").unique(
        ["image_id", "subject_id", "predicate", "object_id"], keep="last", maintain_order=True
    )
    misses = quality_misses(frame, params.quality)
    passed = np.ones(len(frame), dtype=bool)
    turned_away: dict[str, int] = {}
    for name, missed in misses.items():
        turned_away[name] = int((passed & missed).sum())
        passed &= ~missed
    frame = frame.filter(pl.Series(passed))
    rank = hashed(params.seed, "curate", frame["image_id"].to_numpy(), frame["relationship_id"].to_numpy())
    names = zip(frame["subject"], frame["object"], strict=True)
    pair = text_ids(["\n".join(sorted(two)) for two in names])
    side = np.where(fraction(params.seed, "pair", pair) < params.val_pairs, "val", "train")
    return frame.with_columns(
        rank=pl.Series(rank, dtype=pl.UInt64),
        side=pl.Series(side, dtype=pl.String),
        derived=pl.col("source") != "annotated",
    ), turned_away


def choose(
    frame: pl.DataFrame, split: str, classes: tuple[str, ...], count: int, per_pair: int
) -> pl.DataFrame:
    """The first `count` of each class by rank among the images and name pairs of `split`, annotated relations first.

    Rows come by class and rank; a class that is too small gives what it has.
    """
    frame = frame.filter(
        (pl.col("image_split") == split)
        & (pl.col("side") == split)
        & pl.col("predicate").is_in(list(classes))
    )
    frame = frame.sort("predicate", "derived", "rank", "image_id", "relationship_id")
    if per_pair:
        frame = frame.filter(pl.int_range(pl.len()).over("predicate", "subject", "object") < per_pair)
    return frame.filter(pl.int_range(pl.len()).over("predicate") < count)


def crops(frame: pl.DataFrame, params: Crop) -> np.ndarray:
    """`[N, 4]` region of the image that stands for each row: the full image, or the square around both boxes."""
    width, height = (
        frame["width"].to_numpy().astype(np.float64),
        frame["height"].to_numpy().astype(np.float64),
    )
    if params.kind == "image":
        return np.stack([np.zeros_like(width), np.zeros_like(height), width, height], axis=1)
    boxes = union(boxes_of(frame, "s"), boxes_of(frame, "o"))
    return square_crop(boxes, params.margin, width, height, params.min_side, params.align)


def triples_table(frame: pl.DataFrame, split: str, params: Curate) -> pa.Table:
    """Chosen rows as triples: prompts, concepts and crop. The mention order of the neutral prompt is drawn by hash."""
    image, relation = frame["image_id"].to_numpy(), frame["relationship_id"].to_numpy()
    swapped = (fraction(params.seed, "mention order", image, relation) < 0.5).tolist()
    said = list(zip(frame["subject"], frame["predicate"], frame["object"], strict=True))
    crop = crops(frame, params.crop).astype(np.float32)
    columns: dict[str, Any] = {
        "triple_id": [f"{i}-{r}" for i, r in zip(image.tolist(), relation.tolist(), strict=True)],
        "split": pa.repeat(split, len(frame)),
        "prompt": [relational_prompt(*triple) for triple in said],
        "neutral_prompt": [
            neutral_prompt(o, s) if swap else neutral_prompt(s, o)
            for (s, _, o), swap in zip(said, swapped, strict=True)
        ],
        "concepts": pa.array([concepts(*triple) for triple in said], TRIPLES.field("concepts").type),
    }
    columns |= {f"crop_{name}": crop[:, i] for i, name in enumerate("xywh")}
    for name in ("image_id", "relationship_id", "subject", "predicate", "object", "source", *_BOXES):
        columns[name] = frame[name].to_arrow()
    return pa.table({name: columns[name] for name in TRIPLES.names}).cast(TRIPLES)


def curate(relations: pa.Table, images: pa.Table, params: Curate) -> Curated:
    """Choose the triples. Raises `DataError` naming every class that is too small, unless `allow_short`, and if none is left."""
    ranked, turned_away = candidates(relations, images, params)
    wanted = {
        "train": ("train", params.predicates, params.train // len(params.predicates), params.max_per_pair),
        "val": ("val", params.predicates, params.val // len(params.predicates), params.max_per_pair),
        "maps": ("train", params.map_predicates, params.maps_per_class, 0),
    }
    tables: dict[str, pa.Table] = {}
    found: dict[str, dict[str, int]] = {}
    short: list[str] = []
    for name, (split, classes, count, per_pair) in wanted.items():
        chosen = choose(ranked, split, classes, count, per_pair)
        have = dict(chosen.group_by("predicate").len().iter_rows())
        found[name] = {predicate: have.get(predicate, 0) for predicate in classes}
        short += [f"{name} {predicate} {n} of {count}" for predicate, n in found[name].items() if n < count]
        tables[name] = triples_table(chosen, name, params)
    if short and not params.allow_short:
        raise DataError(
            f"curate: too few relations after the quality filters: {'; '.join(short)}; lower the counts or the bounds in "
            "curate.quality, let canonicalize.geometric add relations, or set curate.allow_short"
        )
    if not any(table.num_rows for table in tables.values()):
        missed = ", ".join(f"{name} {count}" for name, count in turned_away.items() if count)
        raise DataError(
            f"curate: no triple is left of {relations.num_rows} relations: {len(ranked)} of the chosen predicates pass "
            "curate.quality"
            + (f" (turned away: {missed})" if missed else "")
            + "; lower its bounds, choose other predicates or counts, or see the splits in canonicalize"
        )
    metrics = {
        **{name: {"triples": tables[name].num_rows, "by_class": found[name]} for name in wanted},
        "candidates": len(ranked),
        "filtered": turned_away,
        "shortfall": {
            name: sum(max(wanted[name][2] - n, 0) for n in found[name].values()) for name in wanted
        },
    }
    return Curated(pa.concat_tables([tables["train"], tables["val"]]), tables["maps"], metrics)
