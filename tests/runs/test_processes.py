"""What a stage's processes set of PyTorch: by `compute.deterministic`, and only by it, the same bits on a GPU, too."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from sgpipe.runs.processes import set_deterministic

SHOWN = """
import os, torch
from sgpipe.runs.config import Compute
from sgpipe.runs.processes import start
start(Compute(device="cpu", deterministic={deterministic}))
print(torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled(),
      os.environ.get("CUBLAS_WORKSPACE_CONFIG"), torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32,
      torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark)
"""


@pytest.fixture
def restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize(
    ("deterministic", "says"),
    [(True, "True False :4096:8 False False True False"), (False, "False False None False True True False")],
)
def test_a_stage_starts_with_what_was_asked_for(deterministic: bool, says: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "CUBLAS_WORKSPACE_CONFIG"}
    done = subprocess.run(
        [sys.executable, "-c", SHOWN.format(deterministic=deterministic)],
        capture_output=True, text=True, check=True, env=environment,
    )  # fmt: skip
    assert done.stdout.strip() == says


@pytest.mark.usefixtures("restored")
def test_a_workspace_that_the_user_chose_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    set_deterministic()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
    with pytest.raises(RuntimeError, match="does not have a deterministic implementation"):
        torch.zeros(3).put_(torch.tensor([0]), torch.ones(1))
