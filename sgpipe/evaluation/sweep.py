"""The arms over several training seeds, one experiment each.

What each of their samples shows is kept in one small file, from which the figures can be computed again without a training.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from sgpipe.datasets.given import given_table
from sgpipe.errors import DataError
from sgpipe.evaluation.arms import LOSSES, headline_conditions
from sgpipe.evaluation.calibration import finite_mean
from sgpipe.evaluation.crossed import Crossed
from sgpipe.evaluation.samples import FACTS, grid
from sgpipe.evaluation.sampling_plan import BASE
from sgpipe.evaluation.statistics import Bootstrap, Floats
from sgpipe.evaluation.summary import QualifiedJudges, Summary, bounds
from sgpipe.evaluation.verdicts import Condition, Verdicts
from sgpipe.runs.atomic import atomic_path, defined

CONDITIONS: Final = ("own", "swapped", "shuffled")
"""What counts for an arm (`arms.headline_conditions`): under g⁺ or its words, g⁻ or its words, another triple's graph."""
SWEEP: Final = pa.schema(
    [
        *[("arm", pa.string()), ("training_seed", pa.int64()), ("triple_id", pa.string()), ("predicate", pa.string())],
        *[("sampling_seed", pa.int64()), ("condition", pa.string())],
        *[("present", pa.bool_()), ("decided", pa.bool_()), ("right", pa.bool_())],
    ]
)
"""A sample of a sweep: both objects seen, whether it counts for roles, and whether those are g⁺'s (null where not)."""


@dataclass(frozen=True)
class Experiment:
    """One training seed: where its results are recorded, what judges said of its images, `arms` of its metrics/lora.json.

    `seeds` are the training seeds of arms that have one of their own.
    """

    name: str
    commit: str
    seed: int
    config: str
    verdicts: Verdicts
    qualified: QualifiedJudges
    arms: Mapping[str, Any]
    seeds: Mapping[str, int] = field(default_factory=dict)

    @property
    def judge(self) -> str:
        """The judge that the headline goes by."""
        return self.qualified.judges.headline

    def outcomes(self, condition: Condition) -> Floats:
        """1/0/NaN `[T, S]`: direction accuracy of g⁺ has them."""
        return Summary(self.verdicts, self.qualified).outcomes(condition)

    def trained(self, arm: str) -> int:
        """The training seed of an arm: its own, or the experiment's."""
        return self.seeds.get(arm, self.seed)

    def headline_conditions(self, arm: str) -> tuple[Condition, Condition]:
        """The conditions that count for the arm (`arms.headline_conditions`)."""
        seen = [each for each in self.verdicts.conditions(self.judge) if each.arm == arm]
        return headline_conditions({(each.prompt, each.graph): each for each in seen})

    def rows(self, arm: str, condition: Condition) -> dict[str, Any]:
        """Columns of `SWEEP` of an arm's samples under a condition, but for the names of arm and condition."""
        cases, seeds = self.verdicts.cases, self.verdicts.seeds
        present = Summary(self.verdicts, self.qualified).present(condition)
        right = self.outcomes(condition).reshape(-1)
        return {
            "training_seed": [self.trained(arm)] * right.size,
            "triple_id": [case.triple_id for case in cases for _ in seeds],
            "predicate": [case.predicate for case in cases for _ in seeds],
            "sampling_seed": seeds * len(cases),
            "present": np.zeros(right.size, bool) if present is None else present.reshape(-1) == 1,
            "decided": np.isfinite(right),
            "right": pa.array(right == 1, mask=np.isnan(right)),
        }


class SweepSamples:
    """A table of `SWEEP` with `facts`: judge, statistics, and by arm its prompt and losses.

    Raises `DataError` for a training seed of an arm that lacks samples of the first one's triples and sampling seeds.
    """

    def __init__(self, table: pa.Table, facts: Mapping[str, Any]) -> None:
        self.table, self.facts = table, facts
        rows = pl.DataFrame(table).rename({"sampling_seed": "seed"}).with_columns(pl.col("present", "right").cast(pl.Float64))
        self.triples: list[str] = rows["triple_id"].unique(maintain_order=True).to_list()
        self.seeds: list[int] = rows["seed"].unique(maintain_order=True).to_list()
        self.arms: dict[str, list[int]] = {}
        """Training seeds by arm."""
        self._shown: dict[tuple[str, str], list[tuple[Floats, Floats]]] = {}
        for (arm, training, condition), part in rows.partition_by("arm", "training_seed", "condition", as_dict=True).items():
            found = grid(part, ("present", "right"), self.triples, self.seeds)
            if found is None:
                raise DataError(
                    f"arm {arm}, training seed {training}, {condition}: {len(part)} samples of {len(self.triples)} triples × "
                    f"{len(self.seeds)} seeds; run `sgpipe report sweep` on its experiments again"
                )
            if condition == "own":
                self.arms.setdefault(arm, []).append(training)
            self._shown.setdefault((arm, condition), []).append((found[0], found[1]))

    def present(self, arm: str) -> list[Floats]:
        """1/0 `[T, S]` of each training seed: both objects seen."""
        return [present for present, _ in self._shown[arm, "own"]]

    def outcomes(self, arm: str, condition: str) -> list[Floats]:
        """1/0/NaN `[T, S]` of each training seed: direction accuracy of g⁺ has them; empty for a condition that was not sampled."""
        return [right for _, right in self._shown.get((arm, condition), [])]

    def write(self, path: Path) -> None:
        """Write table and facts as one Parquet file, atomically; the same content gives the same bytes."""
        with atomic_path(path) as temporary, pq.ParquetWriter(temporary, SWEEP, compression="zstd", store_schema=False) as writer:
            writer.write_table(self.table)
            writer.add_key_value_metadata({FACTS: json.dumps(dict(self.facts), sort_keys=True)})

    @classmethod
    def read(cls, path: Path) -> "SweepSamples":
        """What `write` wrote. Raises `DataError` for another file."""
        table = given_table("--from", path, SWEEP, "the samples that `sgpipe report sweep` writes, metrics/sweep.parquet")
        try:
            facts = json.loads((pq.read_metadata(path).metadata or {})[FACTS])
        except (KeyError, ValueError) as error:
            raise DataError(
                f"{path}: not the samples of a sweep ({error}); `sgpipe report sweep` writes them beside its metrics"
            ) from None
        return cls(table, facts)


def _check(experiments: Sequence[Experiment]) -> None:
    """Raises `DataError` for experiments that cannot be pooled."""
    first = experiments[0]
    for each in experiments[1:]:
        if each.verdicts.cases != first.verdicts.cases or each.verdicts.seeds != first.verdicts.seeds:
            raise DataError(
                f"{each.name}: samples other triples or seeds than {first.name}; the images of a table are of the same ones"
            )
        if each.judge != first.judge or each.qualified.used(each.judge) != first.qualified.used(first.judge):
            raise DataError(
                f"{each.name}: its headline judge {each.judge}, or the classes that it may judge, differ from those of "
                f"{first.name} ({first.judge}); judge both alike (judge, statistics.threshold), or leave one out"
            )


def _having(arm: str, experiments: Sequence[Experiment]) -> Sequence[Experiment]:
    """Those that trained the arm; the base model trains nothing, and one speaks for all."""
    runs = [each for each in experiments if arm in each.arms]
    if arm == BASE:
        return runs[:1]
    seeds = [each.trained(arm) for each in runs]
    if len(set(seeds)) != len(seeds):
        raise DataError(f"arm {arm}, training seeds {seeds}: each may come once; name the experiments of one sweep")
    return runs


def sweep_samples(experiments: Sequence[Experiment], others: Mapping[str, Sequence[Experiment]] | None = None) -> SweepSamples:
    """What every sample of the experiments shows, under the conditions that count for its arm.

    An arm is pooled over the experiments that trained it. Of `others`, experiments of another recipe by its name, arm `graph`
    stands under that name. Raises `DataError` for experiments that sample other triples or seeds, and for a training seed that
    comes twice.
    """
    others = others or {}
    every = [*experiments, *(run for runs in others.values() for run in runs)]
    _check(every)
    named = {arm: (arm, experiments) for each in experiments for arm in each.arms}
    named |= {name: ("graph", runs) for name, runs in others.items()}
    arms: dict[str, dict[str, Any]] = {}
    tables = []
    for name, (arm, candidates) in named.items():
        runs = _having(arm, candidates)
        own, swapped = runs[0].headline_conditions(arm)
        losses = {f"val_loss_{loss}": [run.arms[arm].get(f"val_loss_{loss}") for run in runs] for loss in LOSSES}
        arms[name] = {"prompt": own.prompt, "losses": {key: each for key, each in losses.items() if None not in each}}
        conditions = dict(zip(CONDITIONS, (own, swapped, replace(own, graph="shuffled")), strict=True))
        for run in runs:
            for label, condition in conditions.items():
                if run.verdicts.has(condition, run.judge):
                    rows = run.rows(arm, condition)
                    count = len(rows["triple_id"])
                    tables.append(pa.table({**rows, "arm": [name] * count, "condition": [label] * count}, schema=SWEEP))
    wanted = experiments[0].qualified.statistics
    facts = {
        "arms": arms,
        "judge": experiments[0].judge,
        "statistics": {name: getattr(wanted, name) for name in ("resamples", "confidence", "seed")},
        "training_seeds": len({each.seed for each in experiments}),
        "experiments": {run.name: {"commit": run.commit, "seed": run.seed, "config": run.config} for run in every},
    }
    return SweepSamples(pa.concat_tables(tables), facts)


def _figures(samples: SweepSamples, arm: str, crossed: Crossed) -> dict[str, Any]:
    """What `sweep_figures` says of one arm."""
    shown = samples.outcomes(arm, "own")
    roles = crossed.mean(shown)
    by_seed = {str(seed): finite_mean(each) for seed, each in zip(samples.arms[arm], shown, strict=True)}
    found = {
        "prompt": samples.facts["arms"][arm]["prompt"],
        **bounds("direction_accuracy", roles),
        "direction_accuracy_images": roles.count,
        "direction_accuracy_by_seed": by_seed,
        "direction_accuracy_deviation": float(np.std(list(by_seed.values()), ddof=1)) if len(by_seed) > 1 else None,
        **bounds("swap_follow_rate", crossed.mean([1 - each for each in samples.outcomes(arm, "swapped")])),
        **bounds("objects_present", crossed.mean(samples.present(arm))),
        **{name: float(np.mean(each)) for name, each in samples.facts["arms"][arm]["losses"].items()},
    }
    if shuffled := samples.outcomes(arm, "shuffled"):
        found |= bounds("shuffled_direction_accuracy", crossed.mean(shuffled))
    return found


def sweep_figures(samples: SweepSamples, seeds: Sequence[int] | None = None) -> dict[str, Any]:
    """`arms.<arm>`: roles, swapped graphs followed, objects present, control losses, over all training seeds.

    Training seeds are crossed with triples; intervals of an arm with several hold their variance (`Crossed`), those of the base
    model and of an arm with one training seed are over triples alone. `direction_accuracy_by_seed` and its standard deviation
    show how much the training seed matters. Raises `DataError`, with `seeds`, for an arm that was not trained with just these.
    """
    for arm, there in samples.arms.items():
        if seeds is not None and arm != BASE and set(there) != set(seeds):
            raise DataError(
                f"arm {arm}: trained with seeds {sorted(there)}, asked for {sorted(seeds)}; `dvc queue status` and "
                "`dvc queue logs NAME` say what became of the others"
            )
    crossed = Crossed(Bootstrap(**samples.facts["statistics"]))
    return defined(
        {
            "arms": {arm: _figures(samples, arm, crossed) for arm in samples.arms},
            "triples": len(samples.triples),
            "seeds": len(samples.seeds),
            **{name: samples.facts[name] for name in ("training_seeds", "judge", "experiments")},
        },
        "sweep",
    )
