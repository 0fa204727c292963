"""The benchmark at a hundredth of the size: its counts are those of the arithmetic, and a missed bar is a failure."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import typer.testing

from benchmarks import attention_maps
from benchmarks.attention_maps import BOTH, Shape, measure_flops, measure_memory, measure_storage, measure_time

TINY = Shape(heads=1, width_t5=32, width_pooled=16, side=4, text=8, single=1)


@pytest.mark.parametrize("singles", [0, 2])
def test_flops_are_those_of_the_concept_rows(singles: int) -> None:
    """2·m·n·k for each product of K rows: embedders, AdaLN of one row, projections, MLP, attention and two scores."""
    width, concepts, patches, blocks = 128, TINY.concepts, TINY.side**2, TINY.double
    embedders = 2 * width * (concepts * 32 + 256 + 16 + 2 * width)
    modulation = 2 * 6 * width**2
    rows = 2 * concepts * width**2
    attention = 2 * 2 * concepts * (concepts + patches) * width
    scores = 2 * 2 * concepts * patches * width
    ridden = blocks * (modulation + 3 * rows + attention + scores) + (blocks - 1) * (1 + 8) * rows
    if singles:  # half the modulation; the MLP of 4 widths, and a projection of 5
        ridden += singles * (modulation // 2 + 3 * rows + attention + scores) + (1 + 8) * rows + (singles - 1) * (4 + 5) * rows
    shape = replace(TINY, single=singles or TINY.single)
    found = measure_flops(shape, BOTH) if singles else measure_flops(shape)
    assert round((found["maps_tflop"] - found["plain_tflop"]) * 1e12) == embedders + ridden


def test_memory_is_that_of_the_sums() -> None:
    """Saliency and cross-attention of three groups, for this forward and for those before, and a row of conditioning."""
    sums = 2 * 2 * 3 * TINY.concepts * TINY.side**2 * 4
    assert measure_memory(TINY, batch=3)["bytes_per_prompt"] == sums + 128 * 2


def test_storage_counts_both_kinds_of_three_groups() -> None:
    found = measure_storage(per_class=2, reads=1)
    assert found["maps"] == 48 and 0 < found["set_bytes"] - 3 * 48 * 2 * 3 * 32 * 32 * 2 < 20_000


def test_time_by_batch_size() -> None:
    found = measure_time(TINY, "cpu", torch.float32, (1, 2), steps=1, pairs=2)
    assert list(found) == ["batch_1", "batch_2"]
    for size, each in zip((1, 2), found.values(), strict=True):
        assert 0 < each["ratio_lowest"] <= each["ratio"] <= each["ratio_highest"]
        assert each["maps_images_per_second"] == pytest.approx(size / each["maps_seconds"])


@pytest.mark.parametrize(
    ("more", "held", "ratio", "rate", "code"),
    [
        (0.0019, 1 << 20, 1.07, 1.1e9, 0),
        (0.0021, 1 << 20, 1.07, 1.1e9, 1),
        (0.0019, 1 + (1 << 20), 1.07, 1.1e9, 1),
        (0.0019, 1 << 20, 1.09, 1.1e9, 1),
        (0.0019, 1 << 20, 1.07, 0.9e9, 1),
    ],
)
def test_a_missed_bar_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: float, held: int, ratio: float, rate: float, code: int
) -> None:
    timed = {"plain_seconds": 1.0, "maps_seconds": ratio, "ratio": ratio, "ratio_lowest": 1.0, "ratio_highest": 1.2}
    flops = {"plain_tflop": 17.0, "maps_tflop": 17.0 * (1 + more), "more": more}
    monkeypatch.setattr(attention_maps, "measure_time", lambda *_: {"batch_1": timed})
    monkeypatch.setattr(attention_maps, "measure_flops", lambda *_: flops)
    monkeypatch.setattr(attention_maps, "measure_memory", lambda _, batch: {"bytes_per_prompt": held, "groups": 3})
    monkeypatch.setattr(
        attention_maps, "measure_storage", lambda _: {"set_bytes": 6e8, "read_bytes_per_second": rate, "maps": 16_800}
    )
    app = typer.Typer()
    app.command()(attention_maps.main)
    out = tmp_path / "metrics.json"
    found = typer.testing.CliRunner().invoke(app, ["--no-cuda", "--check", f"--out={out}"])
    assert found.exit_code == code
    assert "GPU: not run" in found.output
    metrics = json.loads(out.read_text())
    assert metrics["cuda"] is None
    assert (metrics["flops"]["more"], metrics["time"]["ratio"]) == (more, ratio)
