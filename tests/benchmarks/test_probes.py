"""The benchmark at a hundredth of the size, and a missed bar is a failure."""

import json
from pathlib import Path

import pytest
import typer.testing

from benchmarks import probes
from benchmarks.probes import measure_loader


def test_the_loader_is_measured_over_the_whole_file() -> None:
    found = measure_loader(per_class=4, rows=24, epochs=1, device="cpu")
    assert found["maps"] == 96 and found["rows"] == 24
    assert 0 < found["waiting_share"] < 0.5 and found["maps_per_second"] > 0


@pytest.mark.parametrize(("seconds", "share", "code"), [(359.0, 0.049, 0), (361.0, 0.049, 1), (359.0, 0.05, 1)])
def test_a_missed_bar_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, share: float, code: int) -> None:
    cells = {"seconds": seconds, "fits": 9, "cells": 45, "workers": 2}
    loader = {"waiting_share": share, "maps_per_second": 1.0, "maps": 16_800}
    monkeypatch.setattr(probes, "measure_cells", lambda *_: cells)
    monkeypatch.setattr(probes, "measure_loader", lambda *_: loader)
    app = typer.Typer()
    app.command()(probes.main)
    out = tmp_path / "metrics.json"
    found = typer.testing.CliRunner().invoke(app, ["--no-cuda", "--check", f"--out={out}"])
    assert found.exit_code == code
    assert "GPU: not run" in found.output
    metrics = json.loads(out.read_text())
    assert (metrics["cells"]["seconds"], metrics["loader"]["cpu"]["waiting_share"]) == (seconds, share)
