"""Maps as a probe reads them: labelled rows of a mapped file, gathered batch by batch.

What a probe sees of the two kinds of map (seed document, "Fusion between saliency maps and cross-attention maps").
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from sgpipe.attention_maps.files import KINDS, MapFile
from sgpipe.errors import DataError
from sgpipe.probes.config import Feature
from sgpipe.relations.predicates import PREDICATE_INDEX, PREDICATES

KINDS_OF: Final[dict[Feature, tuple[str, ...]]] = {
    "saliency": ("saliency",), "cross": ("cross",), "concat": KINDS, "triple": KINDS, "diff": KINDS,
}  # fmt: skip
"""Kinds of map that a feature is made of, in the order in which their channels stand."""
PARTS: Final[dict[Feature, int]] = {"saliency": 1, "cross": 1, "concat": 2, "triple": 3, "diff": 2}
"""Channels of a feature per concept."""


def fuse(maps: Tensor, feature: Feature) -> Tensor:
    """Channels `[B, PARTS · K, H, W]` of a feature from its kinds' maps `[B, kinds · K, H, W]`.

    concat = [saliency, cross]; triple = [saliency, cross, saliency · cross]; diff = [saliency, cross − saliency].
    """
    if feature not in ("triple", "diff"):
        return maps
    saliency, cross = maps.chunk(2, dim=1)
    if feature == "triple":
        return torch.cat([maps, saliency * cross], dim=1)
    return torch.cat([saliency, cross - saliency], dim=1)


Indices = NDArray[np.int64]


class Source(Protocol):
    """Inputs by row."""

    def batch(self, rows: Indices) -> Tensor:
        """Inputs of these rows, float32, on the CPU."""


class Pairs:
    """Classes, (subject, object) name pairs and images of triples: what folds are made of.

    `names`: the distinct ordered pairs; by triple, `of_row` the number of its pair, `unordered` that of its two names in either
    order, `images` that of its image.
    """

    def __init__(self, triples: pa.Table) -> None:
        names = list(zip(triples["subject"].to_pylist(), triples["object"].to_pylist(), strict=True))
        number = {pair: i for i, pair in enumerate(sorted(set(names)))}
        self.names = sorted(number)
        self.triple_ids: list[str] = triples["triple_id"].to_pylist()
        self.predicates: list[str] = triples["predicate"].to_pylist()
        self.of_row: Indices = np.array([number[pair] for pair in names], np.int64)
        either = {pair: i for i, pair in enumerate(sorted({tuple(sorted(pair)) for pair in self.names}))}
        self.unordered: Indices = np.array([either[tuple(sorted(pair))] for pair in names], np.int64)
        self.images: Indices = np.unique(triples["image_id"].to_numpy(), return_inverse=True)[1]
        self.row_of = {name: row for row, name in enumerate(self.triple_ids)}


class MapSet:
    """A file of maps with the class and triple of each row. Nothing is copied: batches are gathered from the mapped file.

    classes: those of the file in the order of `PREDICATES`; labels `[N]`: index among them; `said` `[N]`: that of the class which
    the prompt names (−1: none of them); conditions and t `[N]`; triples `[N]`: rows of the table of triples.
    Raises `DataError` for a foreign class or triple and for maps that are not finite.
    """

    def __init__(self, path: Path, pairs: Pairs) -> None:
        self.file = MapFile(path)
        self.path, self.shape = path, self.file.shape
        if not len(self.file):
            raise DataError(f"{path}: holds no maps; run its stage again")
        items = {name: self.file.items[name].to_pylist() for name in self.file.items.column_names}
        foreign = sorted({name for name in items["predicate"] if name not in PREDICATE_INDEX}, key=str)
        if foreign:
            raise DataError(f"{path}: classes {foreign} are none of the {len(PREDICATES)}; run its stage again")
        self.triple_ids: list[str] = items["triple_id"]
        lost = next((name for name in self.triple_ids if name not in pairs.row_of), None)
        if lost is not None:
            raise DataError(f"{path}: triple {lost} is not among the map triples; run its stage again")
        self.classes = tuple(name for name in PREDICATES if name in set(items["predicate"]))
        index: Mapping[str | None, int] = {name: i for i, name in enumerate(self.classes)}
        self.labels: Indices = np.array([index[name] for name in items["predicate"]], np.int64)
        self.said: Indices = np.array([index.get(name, -1) for name in items["prompt_predicate"]], np.int64)
        self.conditions = np.array(items["condition"], dtype=object)
        self.t = np.array([np.nan if t is None else t for t in items["t"]], np.float32)
        self.triples: Indices = np.array([pairs.row_of[name] for name in self.triple_ids], np.int64)
        self._views = {kind: [self.file.read(kind, group) for group in range(self.file.row_groups)] for kind in KINDS}
        sizes = [len(view) for view in self._views[KINDS[0]]]
        self._starts = np.concatenate([[0], np.cumsum(sizes)])
        self._check_finite()

    def __len__(self) -> int:
        return len(self.labels)

    def _check_finite(self) -> None:
        for kind, views in self._views.items():
            for start, view in zip(self._starts.tolist(), views, strict=False):
                bad = ~np.isfinite(view).all(axis=(1, 2, 3))
                if bad.any():
                    row = start + int(bad.argmax())
                    raise DataError(
                        f"{self.path}: {kind} map of triple {self.triple_ids[row]} (row {row}, condition {self.conditions[row]}) "
                        f"is not finite, as are {int(bad.sum())} of its row group; run its stage again"
                    )

    def expect(self, classes: Sequence[str], shape: Sequence[int], of: str) -> None:
        """Raise `DataError` unless the maps have these classes and this shape, which are those of `of`."""
        if tuple(shape) != tuple(self.shape):
            raise DataError(f"{self.path}: maps are {list(self.shape)} [K, H, W], those of {of} {list(shape)}")
        if tuple(classes) != self.classes:
            differ = sorted({*classes} ^ {*self.classes})
            raise DataError(f"{self.path}: other classes than those of {of}: {', '.join(differ)} in one of them only")

    def gather(self, rows: Indices, kinds: Sequence[str]) -> Tensor:
        """Maps `[B, kinds · K, H, W]` of these rows, float32."""
        count, height, width = self.shape
        halves = np.empty((len(rows), len(kinds) * count, height, width), np.float16)
        group = np.searchsorted(self._starts, rows, side="right") - 1
        for g in np.unique(group).tolist():
            places = np.flatnonzero(group == g)
            at = rows[places] - self._starts[g]
            for i, kind in enumerate(kinds):
                halves[places, i * count : (i + 1) * count] = self._views[kind][g][at]
        return torch.from_numpy(halves).float()


class MapSource:
    """The maps that a feature needs, with t as a last channel where the probe is told it."""

    def __init__(self, maps: MapSet, feature: Feature, timed: bool = False) -> None:
        self.maps, self.kinds, self.timed = maps, KINDS_OF[feature], timed

    def batch(self, rows: Indices) -> Tensor:
        """Maps `[B, kinds · K (+ 1), H, W]`."""
        maps = self.maps.gather(rows, self.kinds)
        return with_time(maps, torch.from_numpy(self.maps.t[rows])) if self.timed else maps


def with_time(maps: Tensor, t: Tensor) -> Tensor:
    """Maps `[B, C, H, W]` and a channel that holds each one's t `[B]`."""
    plane = t.to(maps)[:, None, None, None].expand(-1, 1, *maps.shape[2:])
    return torch.cat([maps, plane], dim=1)
