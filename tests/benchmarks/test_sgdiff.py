"""A missed bar is a failure; the figure is the median over the pairs."""

import json
from pathlib import Path

import pytest
import typer.testing

from benchmarks import sgdiff


@pytest.mark.parametrize(("slow", "code"), [(1.24, 0), (1.26, 1)])
def test_a_missed_bar_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow: float, code: int) -> None:
    monkeypatch.setattr(sgdiff, "seconds", lambda model, batch, steps, sampling: slow if sampling else 1.0)
    app, out = typer.Typer(), tmp_path / "metrics.json"
    app.command()(sgdiff.main)
    found = typer.testing.CliRunner().invoke(app, ["--pairs=3", "--device=cpu", "--check", f"--out={out}"])
    assert found.exit_code == code, found.output
    metrics = json.loads(out.read_text())
    assert metrics["relative_speed"] == pytest.approx(1 / slow, abs=1e-5)
    assert (metrics["batch"], metrics["steps"], metrics["latent_side"]) == (16, 200, 8)
