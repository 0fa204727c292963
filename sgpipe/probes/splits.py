"""Grouped folds: triples that share an unordered name pair or an image stay together, and classes are spread evenly."""

from collections import Counter, defaultdict
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from sgpipe.errors import DataError
from sgpipe.probes.data import Indices, Pairs
from sgpipe.relations.predicates import PREDICATE_INDEX

LEFT_OUT = -1
"""Group and fold of a triple that is in none."""
_PARTS = 3
"""Train, val and test: a class in as many folds is in training whichever two of them the others are."""


def linked(pairs: Indices, images: Indices) -> Indices:
    """Connected component `[N]` of each triple in the bipartite graph of pairs `[N]` and images `[N]`, numbered from 0."""
    size = int(pairs.max()) + 1
    count = size + int(images.max()) + 1
    edges = coo_array((np.ones(len(pairs)), (pairs, size + images)), shape=(count, count))
    return connected_components(edges, directed=False)[1][pairs].astype(np.int64)


@dataclass(frozen=True)
class Groups:
    """Group of each triple, `[triples]`: no unordered name pair and no image is in two of them; `LEFT_OUT` is in none."""

    of_triple: Indices

    @classmethod
    def of(cls, pairs: Pairs, folds: int) -> "Groups":
        """Connected components of {unordered name pair, image}.

        A component with more triples than a fold's even share, 1 / `folds`, is cut, as folds could not be balanced: each of its
        images keeps the triples of one pair, of which it has most, and the others are left out, so that each pair is a group.
        """
        found = linked(pairs.unordered, pairs.images)
        sizes = np.bincount(found)
        cut = sizes[found] * folds > len(found)
        pair_sizes = Counter(zip(pairs.images[cut].tolist(), pairs.unordered[cut].tolist(), strict=True))
        kept: dict[int, int] = {}
        for (image, pair), _ in sorted(pair_sizes.items(), key=lambda each: (-each[1], each[0])):
            kept.setdefault(image, pair)
        for row in np.flatnonzero(cut).tolist():
            pair = int(pairs.unordered[row])
            found[row] = len(sizes) + pair if kept[int(pairs.images[row])] == pair else LEFT_OUT
        return cls(found)

    def facts(self) -> dict[str, float]:
        """Number of groups, the largest one's share of the triples in folds, and how many triples are left out."""
        sizes = np.unique(self.of_triple[self.of_triple != LEFT_OUT], return_counts=True)[1]
        return {
            "groups": len(sizes),
            "largest_share": float(sizes.max() / sizes.sum()),
            "left_out": int((self.of_triple == LEFT_OUT).sum()),
        }


def group_folds(pairs: Pairs, groups: Groups, folds: int, seed: int) -> Indices:
    """Fold of each triple, `[triples]`, by stratified group k-fold.

    Raises `DataError` for a class with fewer groups than there are folds, or one that training could lack.
    """
    samples, spread = Counter(pairs.predicates), defaultdict(set)
    kept = np.flatnonzero(groups.of_triple != LEFT_OUT)
    for row in kept.tolist():
        spread[pairs.predicates[row]].add(int(groups.of_triple[row]))
    if len(samples) < 2:
        raise DataError(f"map triples: {len(samples)} classes; a probe tells at least two apart; see curate.predicates")
    for predicate in sorted(samples):
        count = len(spread[predicate])
        if count < folds:
            fewer = f"set probes.folds to at most {count}, " if count >= _PARTS else ""
            raise DataError(
                f"map triples: class {predicate!r} has {samples[predicate]} samples in {count} groups that share no name pair "
                f"and no image, probes.folds is {folds}; {fewer}raise curate.maps_per_class or leave the class out"
            )
    labels = np.array([PREDICATE_INDEX[name] for name in pairs.predicates])[kept]
    from sklearn.model_selection import StratifiedGroupKFold

    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    fold = np.full(len(pairs.predicates), LEFT_OUT, np.int64)
    for number, (_, rows) in enumerate(splitter.split(labels, labels, groups.of_triple[kept])):
        fold[kept[rows]] = number
    if len(np.unique(fold[kept])) < folds:
        raise DataError(
            f"map triples: {len(kept)} of them share name pairs and images so much that they cannot be dealt to {folds} folds; "
            "lower probes.folds or raise curate.maps_per_class"
        )
    for predicate in sorted(samples):
        found = np.unique(fold[kept[labels == PREDICATE_INDEX[predicate]]])
        if len(found) < _PARTS:
            raise DataError(
                f"map triples: class {predicate!r} falls into {len(found)} of {folds} folds, training would lack it; its samples "
                "share name pairs or images with too many others; raise curate.maps_per_class or leave the class out"
            )
    return fold


@dataclass(frozen=True)
class Split:
    """Triples' parts for one seed: its own fold is the test set, the next one validation, the others training."""

    fold: Indices
    test: int
    val: int

    def rows(self, triples: Indices, part: str) -> Indices:
        """Rows, of those with these triples (by number), that belong to `train`, `val` or `test`."""
        of = self.fold[triples]
        chosen = {"test": of == self.test, "val": of == self.val, "train": (of != self.test) & (of != self.val) & (of != LEFT_OUT)}
        return np.flatnonzero(chosen[part])


def split(pairs: Pairs, groups: Groups, folds: int, seed: int, repeat: int) -> Split:
    """The split of fit number `repeat`: test sets of the first `folds` fits do not overlap; then folds are sampled anew."""
    fold = group_folds(pairs, groups, folds, seed + repeat // folds)
    return Split(fold, repeat % folds, (repeat + 1) % folds)
