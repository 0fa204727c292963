"""The arms over several training seeds: one experiment each, their pictures of a triple side by side."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
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
                f"{each.name}: draws other triples or seeds than {first.name}; the pictures of a table are of the same ones"
            )


def _having(arm: str, experiments: Sequence[Experiment]) -> Sequence[Experiment]:
    """Those that trained the arm; the base model trains nothing, and one speaks for all."""
    runs = [each for each in experiments if arm in each.arms]
    if arm == BASE:
        return runs[:1]
    seeds = [each.seed for each in runs]
    if len(set(seeds)) != len(seeds):
        raise DataError(
            f"arm {arm}, training seeds {seeds}: each may come once; name the experiments of one sweep"
        )
    return runs


def beside(
    runs: Sequence[Experiment], of: Callable[[Experiment, Condition], Floats], condition: Condition
) -> Floats:
    """`[T, R · S]`: what `of` gives of R runs, side by side."""
    return np.concatenate([of(run, condition) for run in runs], axis=1)


def _figures(runs: Sequence[Experiment], arm: str, bootstrap: Bootstrap) -> dict[str, Any]:
    own, against = runs[0].asked(arm)
    shown = beside(runs, Experiment.outcomes, own)
    followed = 1 - beside(runs, Experiment.outcomes, against)
    roles = bootstrap.mean(shown)
    by_seed = {str(run.seed): bootstrap.mean(run.outcomes(own)).value for run in runs}
    values = np.array(list(by_seed.values()))
    found = {
        "prompt": own.prompt,
        **bounds("role_accuracy", roles),
        "role_accuracy_pictures": roles.count,
        "role_accuracy_by_seed": by_seed,
        "role_accuracy_deviation": float(values.std(ddof=1)) if len(values) > 1 else None,
        **bounds("swapped_followed", bootstrap.mean(followed)),
        **bounds("objects_present", bootstrap.mean(beside(runs, Experiment.present, own))),
    }
    shuffled = replace(own, graph="shuffled")
    if shuffled in runs[0].verdicts.conditions(runs[0].judge):
        found |= bounds("shuffled_role_accuracy", bootstrap.mean(beside(runs, Experiment.outcomes, shuffled)))
    for name in LOSSES:
        losses = [run.arms[arm].get(f"val_loss_{name}") for run in runs]
        if None not in losses:
            found[f"val_loss_{name}"] = float(np.mean(losses))
    return found


def _complete(arm: str, runs: Sequence[Experiment], seeds: Sequence[int]) -> None:
    there = [run.seed for run in runs]
    if set(there) != set(seeds):
        raise DataError(
            f"arm {arm}: trained with seeds {sorted(there)}, asked for {sorted(seeds)}; `dvc queue status` and "
            "`dvc queue logs NAME` say what became of the others"
        )


def sweep_figures(
    experiments: Sequence[Experiment],
    others: Mapping[str, Sequence[Experiment]] | None = None,
    seeds: Sequence[int] | None = None,
) -> dict[str, Any]:
    """`arms.<arm>`: roles, swapped graphs followed, objects present, control losses, over all training seeds.

    Pictures that runs of several seeds drew of a triple lie side by side, and the bootstrap draws triples and then pictures.
    `role_accuracy_by_seed` and its standard deviation show how much the training seed matters. An arm is pooled over the
    experiments that trained it. Of `others`, experiments of another recipe by its name, arm `graph` stands under that name. Raises
    `DataError` for experiments that draw other triples or seeds, for a training seed that comes twice and, with `seeds`, for an arm
    that was not trained with just these.
    """
    others = others or {}
    _checked([*experiments, *(run for runs in others.values() for run in runs)])
    names = list(dict.fromkeys(arm for each in experiments for arm in each.arms))
    wanted = experiments[0].jury.statistics
    bootstrap = Bootstrap(wanted.resamples, wanted.confidence, wanted.seed)
    rows = {arm: (arm, _having(arm, experiments)) for arm in names}
    rows |= {name: ("graph", _having("graph", runs)) for name, runs in others.items()}
    for name, (arm, runs) in rows.items():
        if seeds is not None and arm != BASE:
            _complete(name, runs, seeds)
    return plain(
        {
            "arms": {name: _figures(runs, arm, bootstrap) for name, (arm, runs) in rows.items()},
            "triples": len(experiments[0].verdicts.cases),
            "seeds": len(experiments[0].verdicts.seeds),
            "training_seeds": len({each.seed for each in experiments}),
            "judge": experiments[0].judge,
            "experiments": {
                run.name: {"commit": run.commit, "seed": run.seed, "config": run.config}
                for runs in (experiments, *others.values())
                for run in runs
            },
        }
    )
