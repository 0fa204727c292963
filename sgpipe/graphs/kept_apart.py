"""Held-out combinations of triples: val graphs whose triples training shows one by one, and no two of them in one graph."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Self

import polars as pl

from sgpipe.graphs.scene_graph import Fact, SceneGraph


def _pairs(facts: Iterable[Fact]) -> set[frozenset[Fact]]:
    return {frozenset(two) for two in combinations(facts, 2)}


def _ids(relations: pl.DataFrame) -> list[tuple[int, int]]:
    return list(zip(relations["image_id"].to_list(), relations["relationship_id"].to_list(), strict=True))


@dataclass(frozen=True)
class KeptApart:
    """`rows`: which of the val graphs given to `of` are kept. `needed`: of each of their facts the train relation, by image and id,
    that shows it."""

    rows: Sequence[int]
    needed: Mapping[Fact, tuple[int, int]]
    apart: frozenset[frozenset[Fact]] = frozenset()

    @classmethod
    def of(
        cls, val: Sequence[SceneGraph], train: Sequence[SceneGraph], relations: pl.DataFrame, per_class: int, count: int
    ) -> Self:
        """The first `count` graphs of `val` whose facts are each that of another train relation.

        `train[i]` is the graph of row i of `relations` (image_id, relationship_id, predicate), of which training takes `per_class`
        a class. A relation stands for the fact of its graph's first triple, and none whose graph joins two triples that are kept
        apart does.
        """
        options: dict[Fact, list[int]] = {}
        for number, graph in enumerate(train):
            options.setdefault(graph.named_facts[0], []).append(number)
        predicates = relations["predicate"].to_list()
        joined = [_pairs(graph.facts) for graph in train]
        rows: list[int] = []
        shown: dict[Fact, int] = {}
        apart: set[frozenset[Fact]] = set()
        places: Counter[str] = Counter()
        for row, graph in enumerate(val):
            pairs = _pairs(graph.facts)
            if len(rows) == count or not pairs:
                continue
            now = apart | pairs
            added = {
                fact: next((each for each in options.get(fact, ()) if not joined[each] & now), -1)
                for fact in graph.facts
                if fact not in shown
            }
            more = places + Counter(predicates[each] for each in added.values() if each >= 0)
            if min(added.values(), default=0) < 0 or any(joined[each] & pairs for each in shown.values()):
                continue
            if max(more.values(), default=0) > per_class:
                continue
            rows.append(row)
            shown, apart, places = shown | added, now, more
        ids = _ids(relations)
        return cls(rows, {fact: ids[number] for fact, number in shown.items()}, frozenset(apart))

    def prepared(self, frame: pl.DataFrame, graphs: Sequence[SceneGraph]) -> pl.DataFrame:
        """Train candidates, whose graphs these are, without those that join what is kept apart, and which of them are `needed`."""
        kept = [not _pairs(graph.facts) & self.apart for graph in graphs]
        needed = set(self.needed.values())
        flags = [ids in needed for ids in _ids(frame)]
        return frame.with_columns(needed=pl.Series(flags, dtype=pl.Boolean)).filter(pl.Series(kept, dtype=pl.Boolean))
