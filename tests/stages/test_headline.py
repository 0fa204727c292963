"""The figures that experiments are compared by."""

from typing import Any

import pytest

from stages.headline import headline


def row(accuracy: float | None, **more: float) -> dict[str, Any]:
    return {"direction_accuracy": accuracy, "direction_accuracy_low": 0.1, "direction_accuracy_high": 0.9, **more}


EVALUATION = {
    "arms": {
        "base": {"neutral": {"none": row(0.5)}, "relational": {"none": row(0.55)}},
        "second": {"neutral": {"positive": row(0.6), "negative": row(0.5)}},
        "graph": {
            "neutral": {
                "positive": row(0.98, objects_present=0.99), "negative": row(0.25), "empty": row(0.8), "shuffled": row(0.45),
            },
            "relational": {"positive": row(0.97), "negative": row(0.0)},
        },
        "text_only": {"neutral": {"none": row(0.52)}, "conflicting": {"none": row(0.3)}},
    }
}  # fmt: skip
PROBES = {
    "best": {"early": {"probe": "cnn", "feature": "cross"}, "late": {"probe": "mlp", "feature": "diff"}},
    "cells": {
        "cnn": {"cross": {"early": {"selectivity": 0.1}, "late": {"selectivity": 0.7}}},
        "mlp": {"diff": {"early": {"selectivity": 0.6}, "late": {"selectivity": 0.3}}},
    },
}
ADAPTERS = {"text_only": "empty", "graph": "graphs", "second": "graphs"}


def test_they_are_the_figures_of_the_first_arm_of_each_kind() -> None:
    """The probe chosen on validation counts, not the one that is best on the test pairs."""
    assert headline(EVALUATION, PROBES, ADAPTERS) == {
        "graph": 0.98, "graph_low": 0.1, "graph_high": 0.9, "empty": 0.8, "shuffled": 0.45, "swapped": 0.75, "objects": 0.99,
        "text": 0.52, "text_high": 0.9, "base": 0.55, "base_high": 0.9, "base_neutral": 0.5,
        "probe_early": 0.1, "probe_late": 0.3,
    }  # fmt: skip


def test_what_was_not_sampled_or_is_undefined_is_no_number() -> None:
    arms = {"base": EVALUATION["arms"]["base"], "graph": {"neutral": {"positive": row(None), "negative": row(None)}}}
    found = headline({"arms": arms}, {"best": {}, "cells": {}}, {"graph": "graphs"})
    assert found["graph"] is None and found["swapped"] is None and found["objects"] is None
    assert found.keys().isdisjoint({"empty", "shuffled", "text", "text_high"})


def test_with_three_groups_they_are_fifteen(repo_root: Any) -> None:
    import json

    committed = json.loads((repo_root / "metrics/headline.json").read_text())
    assert len(committed) == 15
    evaluation = json.loads((repo_root / "metrics/evaluation.json").read_text())
    probes = json.loads((repo_root / "metrics/probes.json").read_text())
    found = headline(evaluation, probes, {"text_only": "empty", "graph": "graphs"})
    assert found == pytest.approx(committed)
