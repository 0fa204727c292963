"""What judges said, as arrays by triple and seed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa

from sgpipe.errors import DataError
from sgpipe.evaluation.calibration import choices
from sgpipe.evaluation.samples import grid
from sgpipe.evaluation.sampling_plan import BASE, EvaluationTriple
from sgpipe.evaluation.statistics import Floats


@dataclass(frozen=True)
class Condition:
    """Images that one arm drew under one prompt from one kind of graph."""

    arm: str
    prompt: str
    graph: str


@dataclass(frozen=True)
class Scored:
    """A judge's scores of c⁺ and c⁻ `[T, S]` on the images of a condition; NaN where it abstains.

    `others` `[T, S, E]`: for the graph's further triples 1 where it chooses what the graph says, 0 where it does not; NaN past the
    last. `duplicates` `[T, S]`: 1 where it sees an object twice; NaN throughout for a judge that does not count. `present`
    `[T, S]`: 1 where it abstains from no triple of the graph, 0 elsewhere.
    """

    positive: Floats
    negative: Floats
    others: Floats
    duplicates: Floats
    present: Floats

    @property
    def choices(self) -> Floats:
        """1 where the judge chooses c⁺, 0 where c⁻, NaN where neither."""
        return choices(self.positive, self.negative)


class Verdicts:
    """Rows of `VERDICTS` by condition and judge. Raises `DataError` for rows of other triples or seeds, or for missing ones."""

    def __init__(self, table: pa.Table, cases: Sequence[EvaluationTriple], seeds: Sequence[int]) -> None:
        self.cases, self.seeds = list(cases), list(seeds)
        self._scored: dict[tuple[Condition, str], Scored] = {}
        rows = pl.DataFrame(table).with_columns(pl.col("positive", "negative", "duplicate").cast(pl.Float64))
        for (*names, judge), part in rows.partition_by("arm", "prompt", "graph", "judge", as_dict=True).items():
            scored = self._of(part)
            if scored is None:
                arm, prompt, graph = names
                raise DataError(
                    f"verdicts of {arm}, {prompt}, {graph} are of other triples or seeds than asked for; run `dvc repro judge`"
                )
            self._scored[Condition(*names), judge] = scored

    def _of(self, rows: pl.DataFrame) -> Scored | None:
        """One judge's scores of one condition; None unless they are just those that are asked for."""
        sizes = np.array([len(case.statements) for case in self.cases])
        first: list[Floats] = []
        others = np.full((len(sizes), len(self.seeds), int(sizes.max()) - 1), np.nan)
        present = np.ones(others.shape[:2])
        for edge in range(int(sizes.max())):
            having = np.flatnonzero(sizes > edge)
            ids = [self.cases[index].triple_id for index in having]
            found = grid(rows.filter(edge=edge), ("positive", "negative", "duplicate"), ids, self.seeds)
            if found is None:
                return None
            present[having] *= np.isfinite(found[0])
            if edge == 0:
                first = found
            else:
                others[having, :, edge - 1] = found[0] > found[1]
        if len(rows) != sizes.sum() * len(self.seeds):
            return None
        positive, negative, duplicates = first
        return Scored(positive, negative, others, duplicates, present)

    def conditions(self, judge: str) -> list[Condition]:
        """The conditions that the judge has seen, in a fixed order."""
        seen = [condition for condition, by in self._scored if by == judge]
        return sorted(seen, key=lambda each: (each.arm != BASE, each.arm, each.prompt, each.graph))

    def has(self, condition: Condition, judge: str) -> bool:
        """Whether the judge has seen this condition."""
        return (condition, judge) in self._scored

    def scored(self, condition: Condition, judge: str) -> Scored:
        """The judge's scores of a condition."""
        return self._scored[condition, judge]
