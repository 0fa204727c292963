"""The log's peak memory, and lines of what is not finite."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sgpipe.optim.log import Interval, peak_memory

PROGRAM = "import torch; from sgpipe.optim.log import peak_memory; print(peak_memory(torch.device('cpu')))"


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="only /proc tells a process from its parent")
def test_the_peak_is_that_of_the_process_and_not_of_the_one_that_started_it(repo_root: Path) -> None:
    held = b"x" * (2 << 30)
    told = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, cwd=repo_root)
    assert 50 << 20 < int(told.stdout) < len(held) <= peak_memory(torch.device("cpu"))


def test_a_part_that_is_not_finite_is_null() -> None:
    """JSON knows no NaN; and an interval that took no time has no speed."""
    interval = Interval()
    interval.add(7, {"loss": 1.23456789, "other": float("nan")})
    assert json.loads(interval.line(4)) == {
        "step": 7, "loss": 1.23457, "other": None, "learning_rate": 0.0, "samples_per_second": None,
        "peak_memory_bytes": 0,
    }  # fmt: skip
