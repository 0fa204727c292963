"""The arms over several training seeds: one experiment each, their pictures of a triple side by side."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sgpipe.errors import DataError
from sgpipe.evaluation.arms import LOSSES, asked
from sgpipe.evaluation.draws import BASE
from sgpipe.evaluation.statistics import Bootstrap, Floats
from sgpipe.evaluation.summary import Jury, Summary, bounds, plain
from sgpipe.evaluation.verdicts import Condition, Verdicts


@dataclass(frozen=True)
class Experiment:
    """One training seed: where its results are recorded, what judges said of its pictures, `arms` of its metrics/lora.json."""

    name: str
    commit: str
    seed: int
    config: str
    verdicts: Verdicts
    jury: Jury
    arms: Mapping[str, Any]

    @property
    def judge(self) -> str:
        """The judge that the headline goes by."""
        return self.jury.judges.headline

    def outcomes(self, condition: Condition) -> Floats:
        """1/0/NaN `[T, S]`: roles as g⁺ has them."""
        return Summary(self.verdicts, self.jury).outcomes(condition, self.judge, roles=True)

    def present(self, condition: Condition) -> Floats:
        """1/0 `[T, S]`: both objects seen."""
        return np.isfinite(self.verdicts.scored(condition, self.judge).positive).astype(float)

    def asked(self, arm: str) -> tuple[Condition, Condition]:
        """The conditions that count for the arm (`arms.asked`)."""
        seen = [each for each in self.verdicts.conditions(self.judge) if each.arm == arm]
        return asked({(each.prompt, each.graph): each for each in seen})


def _checked(experiments: Sequence[Experiment]) -> None:
    first = experiments[0]
    for each in experiments[1:]:
        if each.verdicts.cases != first.verdicts.cases or each.verdicts.seeds != first.verdicts.seeds:
            raise DataError(
                f"{each.name}: draws other triples or seeds than {first.name}; a sweep changes lora.seed alone"
            )
        if each.arms.keys() != first.arms.keys():
            raise DataError(
                f"{each.name}: has the arms {', '.join(each.arms)}, {first.name} {', '.join(first.arms)}"
            )
    seeds = [each.seed for each in experiments]
    if len(set(seeds)) != len(seeds):
        raise DataError(f"training seeds {seeds}: each may come once; name the experiments of one sweep")


def beside(
    runs: Sequence[Experiment], of: Callable[[Experiment, Condition], Floats], condition: Condition
) -> Floats:
    """`[T, R · S]`: what `of` gives of R runs, side by side."""
    return np.concatenate([of(run, condition) for run in runs], axis=1)


def sweep_figures(experiments: Sequence[Experiment]) -> dict[str, Any]:
    """`arms.<arm>`: roles, swapped graphs followed, objects present, control losses, over all training seeds.

    Pictures that runs of several seeds drew of a triple lie side by side, and the bootstrap draws triples and then pictures.
    `role_accuracy_by_seed` and its standard deviation show how much the training seed matters. The base model trains nothing, so
    its pictures count once. Raises `DataError` for experiments that differ in more than the training seed.
    """
    _checked(experiments)
    wanted = experiments[0].jury.statistics
    bootstrap = Bootstrap(wanted.resamples, wanted.confidence, wanted.seed)
    found: dict[str, Any] = {}
    for arm in experiments[0].arms:
        runs = experiments[:1] if arm == BASE else experiments
        own, against = runs[0].asked(arm)

        shown = beside(runs, Experiment.outcomes, own)
        followed = 1 - beside(runs, Experiment.outcomes, against)
        roles = bootstrap.mean(shown)
        by_seed = {str(run.seed): bootstrap.mean(run.outcomes(own)).value for run in runs}
        values = np.array(list(by_seed.values()))
        found[arm] = {
            "prompt": own.prompt,
            **bounds("role_accuracy", roles),
            "role_accuracy_pictures": roles.count,
            "role_accuracy_by_seed": by_seed,
            "role_accuracy_deviation": float(values.std(ddof=1)) if len(values) > 1 else None,
            **bounds("swapped_followed", bootstrap.mean(followed)),
            **bounds("objects_present", bootstrap.mean(beside(runs, Experiment.present, own))),
        }
        for name in LOSSES:
            losses = [run.arms[arm].get(f"val_loss_{name}") for run in runs]
            if None not in losses:
                found[arm][f"val_loss_{name}"] = float(np.mean(losses))
    return plain(
        {
            "arms": found,
            "triples": len(experiments[0].verdicts.cases),
            "seeds": len(experiments[0].verdicts.seeds),
            "judge": experiments[0].judge,
            "experiments": {
                run.name: {"commit": run.commit, "seed": run.seed, "config": run.config}
                for run in experiments
            },
        }
    )
