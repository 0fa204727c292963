"""How the threads of a stage wait for one another: OpenMP reads it once, when PyTorch is loaded."""

import subprocess
import sys

import pytest

from tests.stages.test_imports import ROOT
from tests.stages.test_pipeline import environment

WAITING = "GOMP_SPINCOUNT = '20000000'"


def openmp(code: str, **variables: str) -> str:
    """What OpenMP says of its settings when `code` loads it."""
    own = {name: value for name, value in environment().items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT, capture_output=True, text=True, check=True, env={**own, "OMP_DISPLAY_ENV": "VERBOSE", **variables},
    )  # fmt: skip
    return done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="PyTorch has GNU's OpenMP on Linux alone")
def test_a_stage_has_threads_that_outwait_another_process() -> None:
    assert WAITING in openmp("import stages.resolve, torch")
    assert WAITING not in openmp("import torch; import stages"), "it says what OpenMP took, not what stands in the environment"


@pytest.mark.skipif(sys.platform != "linux", reason="PyTorch has GNU's OpenMP on Linux alone")
def test_what_the_user_sets_is_heeded() -> None:
    assert "GOMP_SPINCOUNT = '7'" in openmp("import stages.resolve, torch", GOMP_SPINCOUNT="7")
    assert WAITING not in openmp("import stages.resolve, torch", OMP_WAIT_POLICY="passive")
