"""Documented benchmarks that end in seconds."""

import json
from pathlib import Path

import pytest
import torch

from tests.documented import project, ran

SMALL = ("python -m benchmarks.flux_full_size --config small",)
ON_GPU = ("python -m benchmarks.gpu_families",)
RUN = (*SMALL, *ON_GPU)


@pytest.mark.slow
def test_the_small_transformer_takes_the_steps(tmp_path: Path) -> None:
    root = project(tmp_path / "project", "params.yaml", "presets")
    (root / "metrics").mkdir()
    for command in SMALL:
        assert "timed on" in ran(command, root)
    found = json.loads((root / "metrics/flux_full_size.json").read_text())
    assert found["timed"]["eager"]["seconds"] > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, so it would measure for minutes")
def test_without_a_gpu_it_says_so_and_writes_nothing(tmp_path: Path) -> None:
    for command in ON_GPU:
        assert "GPU: not run, none was found" in ran(command, tmp_path)
    assert list(tmp_path.iterdir()) == []
