"""What the sections of the evaluation refuse."""

from typing import Any

import pytest

from sgpipe.errors import ParamsError
from sgpipe.evaluation.config import Ablation, Evaluate
from sgpipe.params.load import decode

EVALUATE: dict[str, Any] = {"adapters": {"graph": "graphs"}, "conditions": {"neutral": ["positive", "negative"]}}


@pytest.mark.parametrize(
    ("section", "kind", "raw", "says"),
    [
        ("evaluate", Evaluate, EVALUATE | {"adapters": {"base": "empty"}}, "base is the arm without an adapter"),
        ("evaluate", Evaluate, EVALUATE | {"adapters": {"graph": "graph"}}, "valid: graphs, empty"),
        (
            "evaluate",
            Evaluate,
            EVALUATE | {"conditions": {"neutral": ["positive"]}},
            "neutral needs at least positive and negative",
        ),
        ("evaluate", Evaluate, EVALUATE | {"conditions": {"relational": ["positive", "negative"]}}, "neutral needs at least"),
        (
            "evaluate",
            Evaluate,
            EVALUATE | {"conditions": {"neutral": ["positive", "negative", "positive"]}},
            "name each graph once",
        ),
        ("evaluate", Evaluate, EVALUATE | {"seeds": [0, 0]}, "name each once"),
        ("evaluate", Evaluate, EVALUATE | {"seeds": []}, "evaluate.seeds"),
        ("ablation", Ablation, {"epochs": [20, 10]}, "in ascending order"),
        ("ablation", Ablation, {"epochs": [10]}, "ablation.epochs"),
        ("ablation", Ablation, {"epochs": [10, 20], "runs": ["graph", "graph"]}, "name each once"),
    ],
)
def test_refusals(section: str, kind: type, raw: dict[str, Any], says: str) -> None:
    with pytest.raises(ParamsError, match=says):
        decode(section, raw, kind, "params.yaml")


def test_more_than_two_epochs_and_several_runs() -> None:
    found = decode("ablation", {"epochs": [1, 5, 20], "runs": ["graph", "graph_seed_1"]}, Ablation, "params.yaml")
    assert found.epochs == (1, 5, 20) and len(found.runs) == 2
