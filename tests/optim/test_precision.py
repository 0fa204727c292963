"""`train.precision: auto`: measured once per machine, kept, and written out as one of the two that there are."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sgpipe.optim.precision import FILE, Precision, choose, gain, layer_step, measured

CPU = torch.device("cpu")


class Clock:
    """Advances by what each precision is said to take."""

    def __init__(self, **seconds: float) -> None:
        self.now, self.seconds, self.steps = 0.0, seconds, list[str]()

    def __call__(self) -> float:
        return self.now

    def step(self, precision: Precision) -> None:
        self.steps.append(precision)
        self.now += self.seconds[precision] * (5 if len(self.steps) <= 2 else 1)  # the first of each is slow


def test_the_gain_is_of_pairs_in_alternating_order_after_a_warm_up() -> None:
    clock = Clock(float32=0.375, bfloat16=0.125)
    assert gain(clock.step, 2.0, clock) == pytest.approx(3.0)
    assert clock.steps[:6] == ["float32", "bfloat16", "float32", "bfloat16", "bfloat16", "float32"]
    assert len(clock.steps) == 2 + 2 * 4


@pytest.mark.parametrize("found", [0.2, 1.0, 1.04])
def test_float32_stays_where_bfloat16_is_not_clearly_faster(tmp_path: Path, found: float) -> None:
    assert choose(CPU, tmp_path, lambda device: found) == "float32"


def test_a_choice_is_measured_once_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found: Iterator[float] = iter([2.0, 0.5])
    assert choose(CPU, tmp_path, lambda device: next(found)) == "bfloat16"
    assert "auto is bfloat16 here: bfloat16 is 2.00 times as fast" in capsys.readouterr().out
    assert choose(CPU, tmp_path, lambda device: next(found)) == "bfloat16", "a busier day changes nothing"
    assert capsys.readouterr().out == "" and next(found) == 0.5
    (kept,) = json.loads((tmp_path / ".dvc" / FILE).read_text()).values()
    assert kept == {"gain": 2.0, "precision": "bfloat16"}


@pytest.mark.parametrize("text", ["", "[]", '{"x": {"precision": "float8"}}', '{"x": 1}'])
def test_a_damaged_file_is_measured_again(tmp_path: Path, text: str) -> None:
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / FILE).write_text(text)
    assert choose(CPU, tmp_path, lambda device: 2.0) == "bfloat16"
    assert "x" not in json.loads((tmp_path / ".dvc" / FILE).read_text())


def test_the_layer_computes_in_the_precision_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.dtype] = []
    plain = torch.autograd.grad

    def recording(out: torch.Tensor, of: torch.Tensor) -> object:
        seen.append(out.dtype)
        return plain(out, of)

    monkeypatch.setattr(torch.autograd, "grad", recording)
    step = layer_step(CPU)
    step("bfloat16")
    step("float32")
    assert seen == [torch.bfloat16, torch.float32]


def test_a_measurement_is_a_positive_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sgpipe.optim.precision.gain", lambda step: gain(step, 0.0))
    assert measured(CPU) > 0
