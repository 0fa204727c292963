"""Epochs of training against one another, on the same triples and seeds."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from sgpipe.evaluation.calibration import finite_mean
from sgpipe.evaluation.config import HEADLINE
from sgpipe.evaluation.crossed import LOG
from sgpipe.evaluation.samples import ImageFile
from sgpipe.evaluation.sensitivity import distances
from sgpipe.evaluation.statistics import Floats
from sgpipe.evaluation.summary import QualifiedJudges, Summary, bounds
from sgpipe.evaluation.verdicts import Condition, Verdicts
from sgpipe.runs.atomic import defined
from sgpipe.runs.progress import tick

PREDECESSOR = {
    "10": {"samples": 10, "mse": 6460.0, "clip_accuracy": 0.60, "margin": 1.01},
    "20": {"samples": 160, "mse": 8613.7, "clip_accuracy": 0.494, "margin": -0.022},
}
"""What the seed document reports. Its two rows are of different samples, so they cannot be compared with one another."""


def checkpoint_arm(run: str, epoch: int) -> str:
    """Name of a checkpoint among the arms."""
    return f"{run}-{epoch}"


def ablation_figures(
    verdicts: Verdicts, qualified: QualifiedJudges, files: Mapping[str, ImageFile], epochs: Sequence[int], runs: Sequence[str]
) -> dict[str, Any]:
    """Metrics of the ablation: each epoch (roles under g⁺ and g⁻, objects present, MSE), and each against the one before it.

    Intervals over runs of several training seeds hold the training seed's variance (`Crossed`). Each epoch ticks.
    """
    summary = Summary(verdicts, qualified)
    crossed = summary.crossed

    def conditions(epoch: int, graph: str) -> list[Condition]:
        return [Condition(checkpoint_arm(run, epoch), HEADLINE, graph) for run in runs]

    def outcomes(epoch: int) -> list[Floats]:
        return [summary.outcomes(each) for each in conditions(epoch, "positive")]

    def figures(epoch: int) -> dict[str, Any]:
        own, shown = conditions(epoch, "positive"), outcomes(epoch)
        swapped = [1 - summary.outcomes(each) for each in conditions(epoch, "negative")]
        roles = crossed.mean(shown)
        found = {
            **bounds("direction_accuracy", roles),
            "direction_accuracy_images": roles.count,
            "direction_accuracy_by_run": {run: finite_mean(part) for run, part in zip(runs, shown, strict=True)},
            **bounds("swap_follow_rate", crossed.mean(swapped)),
            **bounds("accuracy", crossed.mean([summary.outcomes(each, directional=False) for each in own])),
        }
        present = [each for each in map(summary.present, own) if each is not None]
        if present:
            found["objects_present"] = float(np.mean(present))
        apart = [distances(files[each.arm], verdicts.cases, verdicts.seeds, HEADLINE) for each in own]
        graphs, other_seed = zip(*apart, strict=True)
        ratio = crossed.function(lambda means: means[0] / means[1], [graphs, other_seed], LOG)
        tick()
        return found | {"mse": float(np.mean(graphs)), "mse_other_seed": float(np.mean(other_seed)), **bounds("mse_ratio", ratio)}

    return defined(
        {
            "triples": len(verdicts.cases),
            "seeds": len(verdicts.seeds),
            "runs": len(runs),
            "judge": qualified.judges.headline,
            "epochs": {str(epoch): figures(epoch) for epoch in epochs},
            "comparisons": {f"{b}-{a}": summary.compare(outcomes(b), outcomes(a)) for a, b in pairwise(epochs)},
            "predecessor": PREDECESSOR,
        },
        "ablation",
    )
