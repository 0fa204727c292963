"""The work of a training step is counted, not timed: FLOPs of both directions, and what autograd keeps beside the weights."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from benchmarks.lora import counted


def test_work_is_that_of_the_step_without_its_weights() -> None:
    frozen = nn.Linear(8, 4, bias=False).requires_grad_(False)
    rows = torch.ones(2, 8, requires_grad=True)
    training: Any = SimpleNamespace(model=SimpleNamespace(denoiser=SimpleNamespace(transformer=frozen)))

    def step() -> None:
        frozen(rows).exp().sum().backward()

    product, float32 = 2 * 2 * 8 * 4, 4
    assert counted(training, step) == {"flops": 2 * product, "kept": 2 * 4 * float32}
    with torch.no_grad():
        assert counted(training, lambda: frozen(rows)) == {"flops": product, "kept": 0}
