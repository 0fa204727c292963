"""What an arm that was trained on a few triples does to others: control losses by group of triples."""

from typing import Any

import torch

from sgpipe.arms.groups import GROUPS, relation_group
from sgpipe.training.controls import measure
from sgpipe.training.loop import Training


def group_figures(training: Training) -> dict[str, Any]:
    """`groups.<name>` with the number of `triples`, control losses (`controls.CONDITIONS`) and `preferred`; `trained_predicates`.

    Groups are `trained`, the triples trained on, and the val triples by `arms.groups`; one without triples is left out. Measured as
    control losses are, with the weights that are exported.
    """
    objective = training.objective
    own = objective.data.different
    classes = sorted({each.predicate for each in own})
    groups = {"trained": list(own)} | {
        name: [each for each in objective.data.held_out if relation_group(each.predicate, classes) == name] for name in GROUPS
    }
    found: dict[str, Any] = {}
    with training.engine.averaged(), torch.compiler.set_stance("force_eager"):
        for name, examples in groups.items():
            if examples:
                controls = measure(objective, examples, training.train)
                found[name] = {"triples": len(examples), **controls.losses, "preferred": controls.preferred}
    return {"groups": found, "trained_predicates": classes}
