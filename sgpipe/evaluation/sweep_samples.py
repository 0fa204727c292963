"""What each sample of a sweep shows, in one small file: its figures can be computed again from it without a
training."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sgpipe.datasets.tables import read_table
from sgpipe.errors import DataError
from sgpipe.evaluation.samples import SWEEP
from sgpipe.evaluation.statistics import Floats
from sgpipe.runs.atomic import atomic_path

_KEY: Final = b"sgpipe"
CONDITIONS: Final = ("own", "swapped", "shuffled")
"""What counts for an arm (`arms.headline_conditions`): under g⁺ or its words, under g⁻ or its words, and under another
triple's graph."""


class SweepSamples:
    """A table of `SWEEP` with `facts`: judge, statistics, and by arm its prompt and losses.

    Raises `DataError` for a training seed of an arm that lacks samples of the first one's triples and
    sampling seeds.
    """

    def __init__(self, table: pa.Table, facts: Mapping[str, Any]) -> None:
        self.table, self.facts = table, facts
        columns = {name: table[name].to_pylist() for name in SWEEP.names}
        self.triples = list(dict.fromkeys(columns["triple_id"]))
        self.seeds = list(dict.fromkeys(columns["sampling_seed"]))
        row = {name: i for i, name in enumerate(self.triples)}
        column = {seed: i for i, seed in enumerate(self.seeds)}
        shape = (len(self.triples), len(self.seeds))
        self._of: dict[tuple[str, int, str], tuple[Floats, Floats]] = {}
        filled: dict[tuple[str, int, str], int] = {}
        for arm, training, triple, sampling, condition, present, right in zip(
            *(columns[n] for n in ("arm", "training_seed", "triple_id", "sampling_seed", "condition", "present", "right")),
            strict=True,
        ):  # fmt: skip
            key = (arm, training, condition)
            shown, outcome = self._of.setdefault(key, (np.full(shape, np.nan), np.full(shape, np.nan)))
            shown[row[triple], column[sampling]] = present
            outcome[row[triple], column[sampling]] = np.nan if right is None else right
            filled[key] = filled.get(key, 0) + 1
        for (arm, training, condition), count in filled.items():
            if count != shape[0] * shape[1] or np.isnan(self._of[arm, training, condition][0]).any():
                raise DataError(
                    f"arm {arm}, training seed {training}, {condition}: {count} samples of {shape[0]} triples × {shape[1]} seeds; "
                    "run `sgpipe report sweep` on its experiments again"
                )

    @property
    def arms(self) -> dict[str, list[int]]:
        """Training seeds by arm."""
        found: dict[str, list[int]] = {}
        for arm, training, condition in self._of:
            if condition == "own":
                found.setdefault(arm, []).append(training)
        return found

    def present(self, arm: str) -> list[Floats]:
        """1/0 `[T, S]` of each training seed: both objects seen."""
        return [self._of[arm, seed, "own"][0] for seed in self.arms[arm]]

    def outcomes(self, arm: str, condition: str) -> list[Floats]:
        """1/0/NaN `[T, S]` of each training seed: direction accuracy of g⁺ has them; empty for a condition that was not
        sampled."""
        keys = [(arm, seed, condition) for seed in self.arms[arm]]
        return [self._of[key][1] for key in keys if key in self._of]

    def write(self, path: Path) -> None:
        """Write table and facts as one Parquet file, atomically; the same content gives the same bytes."""
        with atomic_path(path) as temporary, pq.ParquetWriter(temporary, SWEEP, compression="zstd", store_schema=False) as writer:
            writer.write_table(self.table)
            writer.add_key_value_metadata({_KEY: json.dumps(dict(self.facts), sort_keys=True)})

    @classmethod
    def read(cls, path: Path) -> "SweepSamples":
        """What `write` wrote. Raises `DataError` for another file."""
        table = read_table(path, SWEEP)
        try:
            facts = json.loads((pq.read_metadata(path).metadata or {})[_KEY])
        except (KeyError, ValueError) as error:
            raise DataError(
                f"{path}: not the samples of a sweep ({error}); `sgpipe report sweep` writes them beside its metrics"
            ) from None
        return cls(table, facts)


def sample_rows(
    arm: str, training_seed: int, condition: str, cases: Sequence[tuple[str, str]], seeds: Sequence[int],
    present: Floats, right: Floats,
) -> pa.Table:  # fmt: skip
    """Rows of `SWEEP` of one arm, training seed and condition; `cases` are triple id and class, the arrays
    `[T, S]`."""
    count = len(cases) * len(seeds)
    decided = np.isfinite(right).reshape(-1)
    columns = {
        "arm": [arm] * count,
        "training_seed": [training_seed] * count,
        "triple_id": [name for name, _ in cases for _ in seeds],
        "predicate": [predicate for _, predicate in cases for _ in seeds],
        "sampling_seed": list(seeds) * len(cases),
        "condition": [condition] * count,
        "present": present.reshape(-1) == 1,
        "decided": decided,
        "right": pa.array(right.reshape(-1) == 1, pa.bool_(), mask=~decided),
    }
    return pa.table(columns, schema=SWEEP)
