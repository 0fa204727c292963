"""Folds by name pair: no (subject, object) of the test set was seen in training, and classes are spread evenly."""

from collections import Counter, defaultdict
from dataclasses import dataclass

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from sgpipe.errors import DataError
from sgpipe.probes.data import Indices, Pairs
from sgpipe.scene_graphs.predicates import PREDICATE_INDEX


def pair_folds(pairs: Pairs, folds: int, seed: int) -> Indices:
    """Fold of each name pair, `[pairs]`. Raises `DataError` for a class with fewer samples or pairs than there are folds."""
    samples = Counter(pairs.predicates)
    distinct: dict[str, set[int]] = defaultdict(set)
    for predicate, pair in zip(pairs.predicates, pairs.of_row.tolist(), strict=True):
        distinct[predicate].add(pair)
    if len(distinct) < 2:
        raise DataError(
            f"map triples: {len(distinct)} classes; a probe tells at least two apart; see curate.predicates"
        )
    for predicate, found in sorted(distinct.items()):
        if len(found) < folds:
            raise DataError(
                f"map triples: class {predicate!r} has {samples[predicate]} samples of {len(found)} name pairs, probes.folds is "
                f"{folds}; set probes.folds to at most {len(found)}, raise curate.maps_per_class or leave the class out"
            )
    labels = np.array([PREDICATE_INDEX[name] for name in pairs.predicates])
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    fold = np.empty(len(pairs.names), np.int64)
    for number, (_, rows) in enumerate(splitter.split(labels, labels, pairs.of_row)):
        fold[pairs.of_row[rows]] = number
    return fold


@dataclass(frozen=True)
class Split:
    """Name pairs' parts for one seed: its own fold of pairs is the test set, the next one validation, the others training."""

    fold: Indices
    test: int
    val: int

    def rows(self, pairs: Indices, part: str) -> Indices:
        """Rows, of those with these pairs, that belong to `train`, `val` or `test`."""
        of = self.fold[pairs]
        chosen = {
            "test": of == self.test,
            "val": of == self.val,
            "train": (of != self.test) & (of != self.val),
        }
        return np.flatnonzero(chosen[part])


def split(pairs: Pairs, folds: int, seed: int, repeat: int) -> Split:
    """The split of fit number `repeat`: test sets of the first `folds` fits do not overlap; then the folds are drawn anew."""
    fold = pair_folds(pairs, folds, seed + repeat // folds)
    return Split(fold, repeat % folds, (repeat + 1) % folds)
