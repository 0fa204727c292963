"""What a training tells MLflow while it runs."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from sgpipe.optim.schedules import warmup_then
from sgpipe.tracking.run import StageRun
from sgpipe.training import loop as training
from sgpipe.training.fit import fit
from tests.training.world import ALONE, TOKENS, World, tiny_train


class Kept(StageRun):
    """Keeps the curves."""

    def __init__(self) -> None:
        super().__init__()
        self.curves: dict[str, dict[int, float]] = {}

    def log_step(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.curves.setdefault(name, {})[step] = value


def test_the_curves_are_those_of_the_history_with_the_losses_first(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow groups by what stands before the slash, and orders groups by name."""
    monkeypatch.setattr(training, "LOGGED", 2)
    recipe, kept = tiny_train(), Kept()
    fitted = fit(
        world.arm(recipe, TOKENS, "graph"), world.denoiser(), world.backbone, world.data(), tmp_path, ALONE, {},
        recorded=kept,
    )  # fmt: skip
    groups = list(dict.fromkeys(name.split("/")[0] for name in sorted(kept.curves)))
    assert groups == ["loss", "loss_terms", "optimiser", "preference"]
    rows = [row for row in fitted.history.steps if row["steps"] == 2]
    assert len(rows) == fitted.steps // 2
    for name, key in {"loss/train": "loss", "loss_terms/flow": "flow", "preference/train": "preferred"}.items():
        assert kept.curves[name] == {row["step"]: row[key] for row in rows}
    rates = {
        step: recipe.optimiser.learning_rate * warmup_then(recipe.optimiser.schedule, step - 1, fitted.steps, 0)
        for step in kept.curves["loss/train"]
    }
    assert kept.curves["optimiser/learning_rate"] == pytest.approx(rates)
    controls = fitted.history.controls
    for condition in controls[0]["losses"]:
        expected = {row["step"]: row["losses"][condition] for row in controls}
        assert kept.curves[f"loss/val_{condition}"] == expected
    assert kept.curves["preference/val"] == {row["step"]: row["preferred"] for row in controls}
