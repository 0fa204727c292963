"""What judges said, as arrays by triple and seed."""

from collections.abc import Sequence
from dataclasses import dataclass

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
    """A judge's scores of c⁺ and c⁻ `[T, S]` on the images of a condition; NaN where it abstains."""

    positive: Floats
    negative: Floats

    @property
    def choices(self) -> Floats:
        """1 where the judge chooses c⁺, 0 where c⁻, NaN where neither."""
        return choices(self.positive, self.negative)


class Verdicts:
    """Rows of `VERDICTS` by condition and judge. Raises `DataError` for rows of other triples or seeds, or for missing ones."""

    def __init__(self, table: pa.Table, cases: Sequence[EvaluationTriple], seeds: Sequence[int]) -> None:
        self.cases, self.seeds = list(cases), list(seeds)
        self._scored: dict[tuple[Condition, str], Scored] = {}
        rows = pl.DataFrame(table).with_columns(pl.col("positive", "negative").cast(pl.Float64))
        for (*names, judge), part in rows.partition_by("arm", "prompt", "graph", "judge", as_dict=True).items():
            condition = Condition(*names)
            found = grid(part, ("positive", "negative"), [case.triple_id for case in cases], seeds)
            if found is None or len(part) != found[0].size:
                raise DataError(
                    f"verdicts of {condition.arm}, {condition.prompt}, {condition.graph} are of other triples or seeds than asked "
                    "for; run `dvc repro judge`"
                )
            self._scored[condition, judge] = Scored(*found)

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
