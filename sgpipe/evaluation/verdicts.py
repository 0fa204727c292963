"""What judges said, as arrays by triple and seed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sgpipe.errors import DataError
from sgpipe.evaluation.calibration import choices
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
        rows = {case.triple_id: row for row, case in enumerate(cases)}
        columns = {seed: column for column, seed in enumerate(seeds)}
        shape = (len(cases), len(seeds))
        self._scored: dict[tuple[Condition, str], Scored] = {}
        names = ("arm", "prompt", "graph", "judge")
        for group in table.group_by(list(names), use_threads=False).aggregate([]).to_pylist():
            part = table
            for name in names:
                part = part.filter(pc.equal(part[name], group[name]))
            ids, of_seed = part["triple_id"].to_pylist(), part["seed"].to_pylist()
            if not (set(ids) <= set(rows) and set(of_seed) <= set(columns) and len(ids) == shape[0] * shape[1]):
                raise DataError(
                    f"verdicts of {group['arm']}, {group['prompt']}, {group['graph']} are of other triples or seeds than "
                    "asked for; run `dvc repro judge`"
                )
            place = ([rows[name] for name in ids], [columns[seed] for seed in of_seed])
            filled = []
            for name in ("positive", "negative"):
                values = np.full(shape, np.nan)
                values[place] = part[name].to_numpy()
                filled.append(values)
            condition = Condition(group["arm"], group["prompt"], group["graph"])
            self._scored[condition, group["judge"]] = Scored(*filled)

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
