"""What a graph encoder is pre-trained on and measured by: relations, each with the crop of its image that it describes."""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Self

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from sgpipe.datasets.tables import CROP, ENDS
from sgpipe.errors import DataError
from sgpipe.graph_encoder.config import GraphEncoder
from sgpipe.graphs.candidates import boxes_of, candidates
from sgpipe.graphs.config import Curate
from sgpipe.graphs.curate import crops
from sgpipe.graphs.scene_graph import SceneGraph
from sgpipe.relations.predicates import INVERSE, RELATIONS
from sgpipe.runs.hashing import fraction, text_ids

PARTS: Final = ("train", "development", "val")
_SEEN: Final = [*CROP, "mirrored"]
_COLUMNS: Final = ["image_id", "relationship_id", "subject", "predicate", "object", "source", *CROP, *ENDS]


@dataclass(frozen=True)
class Examples:
    """Rows of `frame`: names, `part` (one of `PARTS`), `source`, and `crop`, a number into `crops`.

    `crops` has `image_id, crop_*, mirrored, x0, y0, x1, y1`; the last four are the box, in 0–1 of the crop as it is seen, that the
    masked loss hides: one end of one of the crop's relations. `shared` counts development relations left out because training has
    their image.
    """

    frame: pl.DataFrame
    crops: pl.DataFrame
    shared: int

    @classmethod
    def of(cls, relations: pa.Table, images: pa.Table, triples: pa.Table, curate: Curate, params: GraphEncoder) -> Self:
        """All relations of training images that pass curate's bounds, and its validation triples.

        Name pairs that curate deals to validation stay out of training, in either order, and so does a share of the others, which
        is the development part, but for those of images that training has: what generalises there does so to pairs and images never
        met. Raises `DataError` if nothing is left.
        """
        ranked, _ = candidates(relations, images, curate)
        ranked = ranked.filter((pl.col("image_split") == "train") & (pl.col("side") == "train"))
        if not params.geometric:
            ranked = ranked.filter(pl.col("source") == "annotated")
        names = ["\n".join(sorted(two)) for two in zip(ranked["subject"], ranked["object"], strict=True)]
        held = fraction(params.seed, "development", text_ids(names)) < params.development
        box = crops(ranked, curate.crop).astype(np.float32)
        ranked = ranked.with_columns(
            part=pl.Series(np.where(held, "development", "train"), dtype=pl.String),
            **{name: pl.Series(box[:, i]) for i, name in enumerate(CROP)},
        )
        trained = ranked.filter(pl.col("part") == "train").sort("rank", "image_id", "relationship_id")
        trained = trained.head(params.graphs or len(trained))
        if len(trained) < params.batch_size:
            raise DataError(
                f"graph_encoder: {len(trained)} training relations for batches of {params.batch_size}; lower "
                f"graph_encoder.batch_size, widen curate.quality, or give more data"
            )
        apart = ranked.filter(pl.col("part") == "development")
        held_out = apart.filter(~pl.col("image_id").is_in(trained["image_id"].implode()))
        val = pl.DataFrame(triples).filter(pl.col("split") == "val").with_columns(part=pl.lit("val"))
        columns = [*_COLUMNS, "part"]
        frame = pl.concat([part.select(columns) for part in (trained, held_out, val)])
        frame = frame.with_columns(mirrored=False)
        if params.mirror:
            aside = {name for name, each in RELATIONS.items() if each.box_rule in ("left of", "right of")}
            opposite = {name: INVERSE[name] for name in aside & set(INVERSE)}
            kept = (pl.col("part") == "train") & ~pl.col("predicate").is_in(sorted(aside - set(opposite)))
            turned = frame.filter(kept).with_columns(pl.col("predicate").replace(opposite), mirrored=True)
            frame = pl.concat([frame, turned])
        frame = frame.sort("image_id", "relationship_id", "part", "mirrored")
        where = frame.select("image_id", *_SEEN).unique(maintain_order=True).with_row_index("crop")
        frame = frame.join(where, on=["image_id", *_SEEN], how="left", maintain_order="left")
        first = frame.unique("crop", keep="first", maintain_order=True).sort("crop")
        return cls(frame, _hidden(first, params.seed), len(apart) - len(held_out))

    def __len__(self) -> int:
        return len(self.frame)

    @cached_property
    def graphs(self) -> list[SceneGraph]:
        """One graph per row."""
        return [SceneGraph.of(*row) for row in self.frame.select("subject", "predicate", "object").rows()]

    @cached_property
    def crop(self) -> NDArray[np.int64]:
        """Number of each row's crop."""
        return self.frame["crop"].to_numpy().astype(np.int64)

    def names(self, least: int) -> list[str]:
        """Object names, sorted, that occur in at least `least` training relations."""
        trained = self.frame.filter(pl.col("part") == "train")
        counts = Counter([*trained["subject"], *trained["object"]])
        return sorted(name for name, count in counts.items() if count >= least)

    def rows(self, part: str, crops: NDArray[np.bool_], known: frozenset[str]) -> NDArray[np.int64]:
        """Rows of a part whose crop was read and whose two names are known."""
        kept = (pl.col("part") == part) & pl.col("subject").is_in(known) & pl.col("object").is_in(known)
        return np.flatnonzero(self.frame.select(kept).to_series().to_numpy() & crops[self.crop])


def _hidden(first: pl.DataFrame, seed: int) -> pl.DataFrame:
    """The crops of these rows, with the box of the subject or of the object, by hash, as part of the crop."""
    draw = fraction(seed, "hidden", first["image_id"].to_numpy(), first["relationship_id"].to_numpy()) < 0.5
    box = np.where(draw[:, None], boxes_of(first, "s"), boxes_of(first, "o"))
    crop = first.select(CROP).to_numpy().astype(np.float64)
    low = (box[:, :2] - crop[:, :2]) / crop[:, 2:]
    edges = np.concatenate([low, low + box[:, 2:] / crop[:, 2:]], axis=1).clip(0, 1)
    mirrored = first["mirrored"].to_numpy()[:, None]
    edges = np.where(mirrored, np.stack([1 - edges[:, 2], edges[:, 1], 1 - edges[:, 0], edges[:, 3]], 1), edges)
    hidden = {name: pl.Series(edges[:, i]) for i, name in enumerate(("x0", "y0", "x1", "y1"))}
    return first.select("image_id", *_SEEN).with_columns(**hidden)
