"""Epochs of training against one another, on the same triples and seeds."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from sgpipe.evaluation.config import HEADLINE
from sgpipe.evaluation.crossed import LOG, Crossed
from sgpipe.evaluation.samples import ImageFile
from sgpipe.evaluation.sensitivity import distances
from sgpipe.evaluation.statistics import Bootstrap, Floats, mcnemar
from sgpipe.evaluation.summary import QualifiedJudges, Summary, bounds
from sgpipe.evaluation.verdicts import Condition, Verdicts
from sgpipe.runs.atomic import defined

PREDECESSOR = {
    "10": {"samples": 10, "mse": 6460.0, "clip_accuracy": 0.60, "margin": 1.01},
    "20": {"samples": 160, "mse": 8613.7, "clip_accuracy": 0.494, "margin": -0.022},
}
"""What the seed document reports. Its two rows are of different samples, so they cannot be compared with one another."""


def checkpoint_arm(run: str, epoch: int) -> str:
    """Name of a checkpoint among the arms."""
    return f"{run}-{epoch}"


class Epochs:
    """Checkpoints by epoch; intervals over runs of several training seeds hold the training seed's variance (`Crossed`)."""

    def __init__(self, verdicts: Verdicts, qualified: QualifiedJudges, runs: Sequence[str]) -> None:
        self._verdicts, self._runs = verdicts, runs
        self._judge, self._kind = (qualified.judges.headline, qualified.judges.judges[qualified.judges.headline].kind)
        self._summary = Summary(verdicts, qualified)
        wanted = qualified.statistics
        self._crossed = Crossed(Bootstrap(wanted.resamples, wanted.confidence, wanted.seed))

    def outcomes(self, epoch: int, graph: str, directional: bool = True) -> list[Floats]:
        """1/0/NaN `[T, S]` of each run: c⁺ or c⁻ chosen under the neutral prompt from this kind of graph."""
        conditions = [Condition(checkpoint_arm(run, epoch), HEADLINE, graph) for run in self._runs]
        return [self._summary.outcomes(each, self._judge, directional) for each in conditions]

    def figures(self, epoch: int, files: Mapping[str, ImageFile]) -> dict[str, Any]:
        """Of one epoch: roles under g⁺ and g⁻, objects present, MSE."""
        shown = self.outcomes(epoch, "positive")
        role = self._crossed.mean(shown)
        names = [checkpoint_arm(run, epoch) for run in self._runs]
        found: dict[str, Any] = {
            **bounds("direction_accuracy", role),
            "direction_accuracy_images": role.count,
            "direction_accuracy_by_run": {
                run: float(np.nanmean(part)) if np.isfinite(part).any() else float("nan")
                for run, part in zip(self._runs, shown, strict=True)
            },
            **bounds("swap_follow_rate", self._crossed.mean([1 - o for o in self.outcomes(epoch, "negative")])),
            **bounds("accuracy", self._crossed.mean(self.outcomes(epoch, "positive", directional=False))),
        }
        if self._kind != "open_clip":
            present = [
                np.isfinite(self._verdicts.scored(Condition(name, HEADLINE, "positive"), self._judge).positive) for name in names
            ]
            found["objects_present"] = float(np.mean(present))
        apart = [distances(files[name], self._verdicts.cases, self._verdicts.seeds, HEADLINE) for name in names]
        graphs, other = [each.graphs for each in apart], [each.other_seed for each in apart]
        ratio = self._crossed.function(lambda means: means[0] / means[1], [graphs, other], LOG)
        return found | {"mse": float(np.mean(graphs)), "mse_other_seed": float(np.mean(other)), **bounds("mse_ratio", ratio)}

    def compare(self, later: int, earlier: int) -> dict[str, Any]:
        """Direction accuracy of a later epoch less that of an earlier one, with interval and test (`Crossed.difference`)."""
        a, b = self.outcomes(later, "positive"), self.outcomes(earlier, "positive")
        difference, p = self._crossed.difference(a, b)
        test = mcnemar(np.concatenate(a, axis=1), np.concatenate(b, axis=1))
        return {
            **bounds("difference", difference),
            "pairs": difference.count,
            "first_only": test.first_only,
            "second_only": test.second_only,
            "p": p,
            "p_exact": test.exact,
        }


def ablation_figures(
    verdicts: Verdicts, qualified: QualifiedJudges, files: Mapping[str, ImageFile], epochs: Sequence[int], runs: Sequence[str]
) -> dict[str, Any]:
    """Metrics of the ablation: each epoch, and each against the one before it."""
    side = Epochs(verdicts, qualified, runs)
    return defined(
        {
            "triples": len(verdicts.cases),
            "seeds": len(verdicts.seeds),
            "runs": len(runs),
            "judge": qualified.judges.headline,
            "epochs": {str(epoch): side.figures(epoch, files) for epoch in epochs},
            "comparisons": {f"{later}-{earlier}": side.compare(later, earlier) for earlier, later in pairwise(epochs)},
            "predecessor": PREDECESSOR,
        },
        "ablation",
    )
