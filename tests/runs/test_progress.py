"""A bar is opened above and moved below; what takes less than its delay shows none."""

from pathlib import Path

import pytest
import torch

from sgpipe.runs import progress
from sgpipe.runs.progress import FileBars, through, tick
from sgpipe.sgdiff.schedule import DdimTables, ddim


@pytest.fixture
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bars are shown at once, and at every tick."""
    monkeypatch.setattr(progress, "_options", lambda what, unit: {"desc": what, "unit": unit, "mininterval": 0, "miniters": 1})


@pytest.mark.usefixtures("_at_once")
def test_ticks_below_move_the_bar_above(capsys: pytest.CaptureFixture[str]) -> None:
    tick()
    with progress.progress(3, "sampling", "step"):
        tick(2)
        tick()
    tick()
    said = capsys.readouterr().err
    assert "sampling: 100%" in said and "3/3" in said and "step/s" in said
    assert "4/3" not in said


@pytest.mark.usefixtures("_at_once")
def test_a_sampler_ticks_each_image_and_step(capsys: pytest.CaptureFixture[str]) -> None:
    start = torch.zeros(2, 1, 2, 2)
    with progress.progress(2 * 4, "sampling", "step"):
        list(ddim(lambda x, t: x, start, DdimTables.of(4, 0.0), lambda step: start))
    assert "8/8" in capsys.readouterr().err


def test_what_is_soon_done_shows_no_bar(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.progress(2, "sampling", "step"):
        tick(2)
    assert list(through([1, 2], "items", "item")) == [1, 2]
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("_at_once")
def test_a_file_has_a_bar_of_its_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.json").write_text("x" * 40)
    bars = FileBars()
    bars.show(tmp_path / "a.json", 10)
    bars.show(tmp_path / "a.json", 40)
    said = capsys.readouterr().err
    assert "a.json: 100%" in said and "40.0/40.0" in said
