"""The arms over several training seeds, one experiment each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from sgpipe.errors import DataError
from sgpipe.evaluation.arms import LOSSES, headline_conditions
from sgpipe.evaluation.crossed import Crossed
from sgpipe.evaluation.sampling_plan import BASE
from sgpipe.evaluation.statistics import Bootstrap, Floats, of_means
from sgpipe.evaluation.summary import QualifiedJudges, Summary, bounds
from sgpipe.evaluation.sweep_samples import CONDITIONS, SweepSamples, sample_rows
from sgpipe.evaluation.verdicts import Condition, Verdicts
from sgpipe.runs.atomic import defined


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
        return Summary(self.verdicts, self.qualified).outcomes(condition, self.judge, directional=True)

    def present(self, condition: Condition) -> Floats:
        """1/0 `[T, S]`: both objects seen; NaN where the judge is no detector and cannot say."""
        scores = self.verdicts.scored(condition, self.judge).positive
        if self.qualified.judges.judges[self.judge].kind == "open_clip":
            return np.full(scores.shape, np.nan)
        return np.isfinite(scores).astype(float)

    def trained(self, arm: str) -> int:
        """The training seed of an arm: its own, or the experiment's."""
        return self.seeds.get(arm, self.seed)

    def headline_conditions(self, arm: str) -> tuple[Condition, Condition]:
        """The conditions that count for the arm (`arms.headline_conditions`)."""
        seen = [each for each in self.verdicts.conditions(self.judge) if each.arm == arm]
        return headline_conditions({(each.prompt, each.graph): each for each in seen})


def _checked(experiments: Sequence[Experiment]) -> None:
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


def _rows(runs: Sequence[Experiment], name: str, arm: str) -> list[pa.Table]:
    """The samples of an arm, which stands under `name`, of all its runs."""
    own, against = runs[0].headline_conditions(arm)
    counted = dict(zip(CONDITIONS, (own, against, replace(own, graph="shuffled")), strict=True))
    return [
        sample_rows(
            name, run.trained(arm), label, [(case.triple_id, case.predicate) for case in run.verdicts.cases],
            run.verdicts.seeds, run.present(condition), run.outcomes(condition),
        )
        for run in runs
        for label, condition in counted.items()
        if run.verdicts.has(condition, run.judge)
    ]  # fmt: skip


def sweep_samples(experiments: Sequence[Experiment], others: Mapping[str, Sequence[Experiment]] | None = None) -> SweepSamples:
    """What every sample of the experiments shows, under the conditions that count for its arm.

    An arm is pooled over the experiments that trained it. Of `others`, experiments of another recipe by its
    name, arm `graph` stands under that name. Raises `DataError` for experiments that sample other triples or
    seeds, and for a training seed that comes twice.
    """
    others = others or {}
    _checked([*experiments, *(run for runs in others.values() for run in runs)])
    names = list(dict.fromkeys(arm for each in experiments for arm in each.arms))
    rows = {arm: (arm, _having(arm, experiments)) for arm in names}
    rows |= {name: ("graph", _having("graph", runs)) for name, runs in others.items()}
    wanted = experiments[0].qualified.statistics
    arms: dict[str, dict[str, Any]] = {}
    for name, (arm, runs) in rows.items():
        losses = {loss: [run.arms[arm].get(f"val_loss_{loss}") for run in runs] for loss in LOSSES}
        arms[name] = {
            "prompt": runs[0].headline_conditions(arm)[0].prompt,
            "losses": {f"val_loss_{loss}": each for loss, each in losses.items() if None not in each},
        }
    facts = {
        "arms": arms,
        "judge": experiments[0].judge,
        "statistics": {name: getattr(wanted, name) for name in ("resamples", "confidence", "seed")},
        "training_seeds": len({each.seed for each in experiments}),
        "experiments": {
            run.name: {"commit": run.commit, "seed": run.seed, "config": run.config}
            for runs in (experiments, *others.values())
            for run in runs
        },
    }
    tables = [table for name, (arm, runs) in rows.items() for table in _rows(runs, name, arm)]
    return SweepSamples(pa.concat_tables(tables), facts)


def _figures(samples: SweepSamples, arm: str, crossed: Crossed) -> dict[str, Any]:
    shown = samples.outcomes(arm, "own")
    roles = crossed.mean(shown)
    by_seed = {str(seed): of_means(lambda means: means[0], [each]) for seed, each in zip(samples.arms[arm], shown, strict=True)}
    values = np.array(list(by_seed.values()))
    found = {
        "prompt": samples.facts["arms"][arm]["prompt"],
        **bounds("direction_accuracy", roles),
        "direction_accuracy_images": roles.count,
        "direction_accuracy_by_seed": by_seed,
        "direction_accuracy_deviation": float(values.std(ddof=1)) if len(values) > 1 else None,
        **bounds("swap_follow_rate", crossed.mean([1 - each for each in samples.outcomes(arm, "swapped")])),
        **bounds("objects_present", crossed.mean(samples.present(arm))),
    }
    if shuffled := samples.outcomes(arm, "shuffled"):
        found |= bounds("shuffled_direction_accuracy", crossed.mean(shuffled))
    losses = samples.facts["arms"][arm]["losses"]
    return found | {name: float(np.mean(each)) for name, each in losses.items()}


def sweep_figures(samples: SweepSamples, seeds: Sequence[int] | None = None) -> dict[str, Any]:
    """`arms.<arm>`: roles, swapped graphs followed, objects present, control losses, over all training seeds.

    Training seeds are crossed with triples; intervals of an arm with several hold their variance (`Crossed`),
    those of the base model and of an arm with one training seed are over triples alone.
    `direction_accuracy_by_seed` and its standard deviation show how much the training seed matters. Raises
    `DataError`, with `seeds`, for an arm that was not trained with just these.
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
