"""Gradients over processes are the mean of each, so that several processes step as one does with the whole batch."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sgpipe.optim.engine import average_gradients
from sgpipe.training.config import Optimiser
from sgpipe.training.loop import adamw

NAMES = ("lora.both", "lora.one", "lora.none", "tokens.both")
SAMPLES = torch.tensor([[1.0, -2.0, 4.0], [3.0, 5.0, -7.0]])
"""One per process; the loss of each is linear in the weights that it reaches."""

PROGRAM = """
import json
from accelerate import PartialState
from tests.training.test_gradients import step
state = PartialState(cpu=True)
found = step([state.process_index], state.num_processes)
if state.is_main_process:
    print("found", json.dumps(found))
"""


def step(samples: list[int], processes: int) -> dict[str, Any]:
    """Gradients of a process that has these samples, and its weights after a step of AdamW and one of plain descent."""
    weights = {name: nn.Parameter(torch.ones(3)) for name in NAMES}
    optimiser = adamw(weights, Optimiser(learning_rate=0.1, weight_decay=0.5))
    losses = []
    for index in samples:
        reached = ["lora.both", "tokens.both"] + (["lora.one"] if index == 1 else [])
        losses.append(sum((weights[name] * SAMPLES[index]).sum() for name in reached))
    torch.stack(losses).mean().backward()
    average_gradients(weights, processes)
    gradients = {name: None if w.grad is None else w.grad.tolist() for name, w in weights.items()}
    descended = {name: (w - w.grad).tolist() for name, w in weights.items() if w.grad is not None}
    optimiser.step()
    return {"gradients": gradients, "descended": descended, "adamw": {name: w.tolist() for name, w in weights.items()}}


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory, repo_root: Path) -> dict[str, Any]:
    """What the first of two real processes has."""
    program = tmp_path_factory.mktemp("two") / "program.py"
    program.write_text(PROGRAM)
    done = subprocess.run(
        [str(Path(sys.executable).with_name("torchrun")), "--nproc-per-node", "2", str(program)],
        capture_output=True, text=True, check=False, cwd=repo_root, timeout=600,
        env={**os.environ, "PYTHONPATH": str(repo_root)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("found "))
    return json.loads(line.removeprefix("found "))  # type: ignore[no-any-return]


def test_two_processes_have_the_gradients_of_one_with_both_samples(of_two: dict[str, Any]) -> None:
    """By the gradients: a sum in place of the mean is hidden from the weights by AdamW, which divides by their size."""
    of_one = step([0, 1], 1)
    assert of_one["gradients"]["lora.both"] == [2.0, 1.5, -1.5]
    assert of_two["gradients"] == of_one["gradients"] and of_two["descended"] == of_one["descended"]


def test_a_weight_that_no_loss_reached_stays_as_it_is(of_two: dict[str, Any]) -> None:
    """With one process and with several: a gradient of zero would have it decayed, and moved by what AdamW remembers."""
    of_one = step([0, 1], 1)
    assert of_one["gradients"]["lora.none"] is None and of_two["gradients"]["lora.none"] is None
    assert of_two["adamw"] == of_one["adamw"] and of_two["adamw"]["lora.none"] == [1.0, 1.0, 1.0]
    assert of_two["gradients"]["lora.one"] == [1.5, 2.5, -3.5]


def test_weights_are_grouped_by_their_prefix_each_with_its_learning_rate() -> None:
    made = {name: nn.Parameter(torch.ones(1)) for name in ("lora.a", "tokens.b", "lora.c", "control.d")}
    groups = adamw(made, Optimiser(learning_rate=0.1, token_lr_multiplier=3.0)).param_groups
    assert [group["params"] for group in groups] == [
        [made["lora.a"], made["lora.c"]], [made["tokens.b"]], [made["control.d"]],
    ]  # fmt: skip
    assert [group["lr"] for group in groups] == pytest.approx([0.1, 0.3, 0.1])
