"""The few figures by which experiments are compared."""

from collections.abc import Mapping
from typing import Any

from sgpipe.evaluation.arms import headline_conditions, read_metrics
from sgpipe.evaluation.config import HEADLINE, Evaluate
from sgpipe.evaluation.sampling_plan import BASE, NO_GRAPH
from sgpipe.params.load import read_params
from sgpipe.runs.atomic import DIGITS, write_json
from sgpipe.runs.command import run
from stages import METRICS


def headline(evaluation: Mapping[str, Any], probes: Mapping[str, Any], adapters: Mapping[str, str]) -> dict[str, Any]:
    """Direction accuracies with their bounds, swap-follow rate, objects present and probe selectivity, by short names.

    `graph`: the first of `adapters` (arm → what it is given, as `evaluate.adapters`) that is given graphs, under neutral prompts,
    with `low` and `high` bounds, with an `empty` and a `shuffled` graph, and the share of swapped graphs that it follows.
    `text`: the first that is given none, and `base`: both in words, with the upper bound, which the graph's lower one has to clear;
    `base_neutral` is the base without them. `probe_<group>`: selectivity of the probe chosen on validation. With three groups
    these are fifteen; what was not sampled is left out.
    """
    arms, found = evaluation["arms"], {}
    given = {kind: next((arm for arm, of in adapters.items() if of == kind), "") for kind in ("graphs", "empty")}
    for name, arm in (("base", BASE), ("text", given["empty"]), ("graph", given["graphs"])):
        if arm not in arms:
            continue
        sampled = {(prompt, graph): row for prompt, rows in arms[arm].items() for graph, row in rows.items()}
        own, against = headline_conditions(sampled)
        found[name], found[f"{name}_high"] = own["direction_accuracy"], own["direction_accuracy_high"]
        if name == "base":
            found["base_neutral"] = sampled[HEADLINE, NO_GRAPH]["direction_accuracy"]
        elif name == "graph":
            followed = against["direction_accuracy"]
            found |= {
                "graph_low": own["direction_accuracy_low"],
                "swapped": None if followed is None else 1 - followed,
                "objects": own.get("objects_present"),
            }
            for graph in ("empty", "shuffled"):
                if (HEADLINE, graph) in sampled:
                    found[graph] = sampled[HEADLINE, graph]["direction_accuracy"]
    for group, best in probes["best"].items():
        found[f"probe_{group}"] = probes["cells"][best["probe"]][best["feature"]][group]["selectivity"]
    return found


def main() -> None:
    """Pick them from the metrics of the evaluation and of the probes."""
    config = read_params(Evaluate)
    evaluation, probes = (read_metrics(METRICS / f"{name}.json") for name in ("evaluation", "probes"))
    write_json(headline(evaluation, probes, config.adapters), METRICS / "headline.json", DIGITS)


if __name__ == "__main__":
    run(main)
