"""The arms side by side: what the images show, and what the training measured on noise (`metrics/lora.json`)."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from sgpipe.errors import DataError
from sgpipe.evaluation.config import HEADLINE
from sgpipe.evaluation.sampling_plan import NO_GRAPH

LOSSES = ("graph", "empty", "shuffled", "swapped", "base")
"""Control losses of validation: the graph, none, another sample's, the swapped one, the base model."""


def read_metrics(path: Path) -> Any:
    """A metrics file. Raises `DataError` naming it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such metrics; run `dvc repro` for the stage that writes it") from None
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: cannot be read ({error}); run its stage again") from None


Named = TypeVar("Named")


def headline_conditions(sampled: Mapping[tuple[str, str], Named]) -> tuple[Named, Named]:
    """What counts for an arm, of all that was sampled of it by (prompt, graph): that for g⁺, and that for g⁻.

    An arm that is given graphs is asked under neutral prompts, by g⁺ and g⁻. One that is given none is asked in words, by
    relational and conflicting prompts where those were sampled.
    """
    if (HEADLINE, "positive") in sampled:
        return sampled[HEADLINE, "positive"], sampled[HEADLINE, "negative"]
    own = sampled.get(("relational", NO_GRAPH), sampled[HEADLINE, NO_GRAPH])
    return own, sampled.get(("conflicting", NO_GRAPH), own)


def arm_figures(arms: Mapping[str, Any], trained: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """`<arm>` with roles, objects and control losses; `arms` is that of the evaluation, `trained` are the metrics of training.

    An external arm, which nothing here trained, has no control losses. `prompt` says how the arm was asked
    (`headline_conditions`). Raises `DataError` where training states no control loss.
    """
    found: dict[str, Any] = {}
    for arm, by_prompt in arms.items():
        own_name, against_name = headline_conditions({(p, g): (p, g) for p, shown in by_prompt.items() for g in shown})
        prompt = own_name[0]
        own, against = (by_prompt[p][g] for p, g in (own_name, against_name))
        followed = against["direction_accuracy"]
        found[arm] = {
            "prompt": prompt,
            "direction_accuracy": own["direction_accuracy"],
            "direction_accuracy_low": own["direction_accuracy_low"],
            "swap_follow_rate": None if followed is None else 1 - followed,
            "objects_present": own.get("objects_present"),
        }
        if arm in trained and not trained[arm].get("external"):
            for name in LOSSES:
                key = f"val_loss_{name}"
                if key not in trained[arm]:
                    raise DataError(f"metrics/lora/{arm}.json: {key} is missing; run `dvc repro train_lora` again")
                found[arm][key] = trained[arm][key]
    return found
