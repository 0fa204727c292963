"""The arms side by side: what the pictures show, and what the training measured on noise (`metrics/lora.json`)."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sgpipe.errors import DataError
from sgpipe.evaluation.draws import NO_GRAPH
from sgpipe.params.evaluate import HEADLINE

LOSSES = ("graph", "empty", "shuffled", "swapped", "base")
"""Control losses of validation: the graph, none, another sample's, the swapped one, the base model."""


def read_metrics(path: Path) -> dict[str, Any]:
    """A metrics file. Raises `DataError` naming it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such metrics; run `dvc repro` for the stage that writes it") from None
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: cannot be read ({error}); run its stage again") from None


def arm_figures(arms: Mapping[str, Any], trained: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """`<arm>` with roles, objects and control losses; `arms` is that of the evaluation, `trained` are the metrics of training.

    Of an arm that is given no graph, the share that follows g⁻ is what is left of the share that follows g⁺, on the same pictures.
    Raises `DataError` where training states no control loss.
    """
    found: dict[str, Any] = {}
    for arm, by_prompt in arms.items():
        shown = by_prompt[HEADLINE]
        own = shown.get("positive") or shown[NO_GRAPH]
        against = (shown.get("negative") or own)["role_accuracy"]
        found[arm] = {
            "role_accuracy": own["role_accuracy"],
            "role_accuracy_low": own["role_accuracy_low"],
            "swapped_followed": None if against is None else 1 - against,
            "objects_present": own.get("objects_present"),
        }
        if arm in trained:
            for name in LOSSES:
                key = f"val_loss_{name}"
                if key not in trained[arm]:
                    raise DataError(
                        f"metrics/lora/{arm}.json: {key} is missing; run `dvc repro train_lora` again"
                    )
                found[arm][key] = trained[arm][key]
    return found
