"""Relations that may be chosen: which pass the bounds, in what order, and on which side of the splits names and classes are.

Every relation gets a rank: a hash of the seed, its image and its id. Name pairs are dealt to train or val by hash as well, so no
two names, in either order, are in both; images keep the split that canonicalize gave them.
"""

from collections.abc import Collection, Iterable
from typing import Final

import numpy as np
import polars as pl
import pyarrow as pa

from sgpipe.datasets.tables import BOX
from sgpipe.graphs.config import Curate, Quality
from sgpipe.relations.boxes import overlap
from sgpipe.runs.hashing import fraction, hashed, text_ids

ORDER: Final = ("derived", "rank", "image_id", "relationship_id")
"""Annotated relations first, then by rank."""


def boxes_of(frame: pl.DataFrame, side: str) -> np.ndarray:
    """`[N, 4]` boxes of the subjects (`s`) or objects (`o`)."""
    return frame.select([f"{side}{name}" for name in BOX]).to_numpy().astype(np.float64)


def sizes_of(frame: pl.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Widths and heights `[N]` of the images."""
    return frame["width"].to_numpy().astype(np.float64), frame["height"].to_numpy().astype(np.float64)


def quality_misses(frame: pl.DataFrame, params: Quality) -> dict[str, np.ndarray]:
    """For each bound, which rows miss it. `frame` has the columns of relations, `width` and `height`."""
    s, o = boxes_of(frame, "s"), boxes_of(frame, "o")
    width, height = sizes_of(frame)
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
