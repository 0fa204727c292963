"""What the images of an arm that was trained on a few triples show, by group of triples."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from sgpipe.arms.groups import GROUPS, relation_group
from sgpipe.evaluation.arms import headline_conditions
from sgpipe.evaluation.statistics import Bootstrap
from sgpipe.evaluation.summary import QualifiedJudges, Summary, bounds
from sgpipe.evaluation.verdicts import Verdicts
from sgpipe.runs.atomic import plain


def image_groups(verdicts: Verdicts, qualified: QualifiedJudges, trained: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """`<arm>.<group>`: `triples`, `direction_accuracy` with its interval and images, `swap_follow_rate`, `objects_present`.

    Of arms whose metrics of training (`trained`) have `trained_predicates`; groups are those of `arms.groups`; one without triples
    is left out. Figures are as in `metrics/lora.json`, by the headline judge under the conditions that count for the arm.
    """
    summary, wanted = Summary(verdicts, qualified), qualified.statistics
    bootstrap, found = Bootstrap(wanted.resamples, wanted.confidence, wanted.seed), dict[str, Any]()
    for arm, metrics in trained.items():
        if "trained_predicates" not in metrics:
            continue
        sampled = {(each.prompt, each.graph): each for each in summary.conditions if each.arm == arm}
        own, against = headline_conditions(sampled)
        present = summary.present(own)
        of_case = np.array([relation_group(case.predicate, metrics["trained_predicates"]) for case in verdicts.cases])
        for group in GROUPS:
            rows = (of_case == group)[:, None]
            if rows.any():
                right = bootstrap.mean(np.where(rows, summary.outcomes(own), np.nan))
                followed = bootstrap.mean(np.where(rows, 1 - summary.outcomes(against), np.nan))
                figures = {
                    "triples": int(rows.sum()),
                    **bounds("direction_accuracy", right),
                    "direction_accuracy_images": right.count,
                }
                figures |= {"swap_follow_rate": followed.value}
                figures |= {} if present is None else {"objects_present": float(present[rows[:, 0]].mean())}
                found.setdefault(arm, {})[group] = figures
    return plain(found)
