"""Model cards hold the figures that were measured, and say which bars they miss."""

import json
from pathlib import Path

import pytest

from sgpipe.errors import DataError
from sgworld.cards import BARS, cards, misses, write_cards
from sgworld.recipe import Recipe

METRICS = Path(__file__).parents[2] / "metrics" / "miniature.json"


def reached() -> dict[str, object]:
    """Figures that reach every bar."""
    values: dict[str, object] = json.loads(METRICS.read_text())
    return {**values, **{name: low for name, (low, _) in BARS.items()}}


def test_a_figure_outside_its_bar_is_named() -> None:
    assert misses(reached()) == []
    assert misses({**reached(), "base_direction_accuracy": 0.6}) == ["base_direction_accuracy is 0.6, wanted 0.45 to 0.55"]
    assert misses({**reached(), "vae_psnr_db": 29.0}) == ["vae_psnr_db is 29, wanted at least 30"]


def test_cards_state_figures_steps_and_misses() -> None:
    recipe = Recipe(shallow_steps=(2_345, 12_345))
    text = cards({**reached(), "objects_present": 0.8125}, recipe)["mini-flux"]
    assert "2,345 and 12,345 steps" in text and "| `objects_present` | 0.8125 | ≥ 0.95 |" in text
    assert "Bars missed: objects_present is 0.8125, wanted at least 0.95." in text
    assert "All bars are reached." in cards(reached(), recipe)["mini-flux"]


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="mini-flux: no such checkpoint"):
        write_cards(tmp_path, reached())
