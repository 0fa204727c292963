"""Which precision of matrix products is faster on this machine: `train.precision: auto`.

bfloat16 is faster where the processor multiplies it (tensor cores, AMX) and several times slower where it is emulated, and no flag
of a processor tells which. So the products of one layer, forward and backward under autocast, are timed in both, by turns, for two
seconds. What was found is kept beside the working states and counts from then on, since a second measurement on a busier day could
say otherwise and would train every arm again.
"""

import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, Literal, get_args

import torch

from sgpipe.runs.atomic import write_json
from sgpipe.runs.state import shared_dir

Precision = Literal["float32", "bfloat16"]
FILE = "precision.json"
SECONDS = 2.0
ROWS, WIDTH, INNER = 1024, 512, 2048
"""Tokens of a batch, and the widths of the two matrices of an MLP."""
GAIN = 1.05
"""bfloat16 must be so many times as fast: at equal speed float32 is the more exact one."""


def layer_step(device: torch.device) -> Callable[[Precision], None]:
    """Forward and backward of two linear layers `[ROWS, WIDTH] → [ROWS, INNER] → [ROWS, WIDTH]` in a precision."""
    made = torch.Generator().manual_seed(0)
    first, second = (torch.randn(shape, generator=made).to(device) for shape in ((INNER, WIDTH), (WIDTH, INNER)))
    rows = torch.randn(ROWS, WIDTH, generator=made).to(device).requires_grad_()

    def step(precision: Precision) -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            out = torch.nn.functional.linear(torch.nn.functional.linear(rows, first), second)
        torch.autograd.grad(out.sum(), rows)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return step


def gain(step: Callable[[Precision], None], seconds: float = SECONDS, clock: Callable[[], float] = time.perf_counter) -> float:
    """Time in float32 over time in bfloat16: the median over pairs in alternating order, the first of which warms up."""
    order: list[Precision] = ["float32", "bfloat16"]
    for precision in order:
        step(precision)
    ratios: list[float] = []
    begun = clock()
    while not ratios or clock() - begun < seconds:
        took = {}
        for precision in order:
            start = clock()
            step(precision)
            took[precision] = clock() - start
        ratios.append(took["float32"] / took["bfloat16"])
        order.reverse()
    return median(ratios)


def measured(device: torch.device) -> float:
    """`gain` of a layer on the device."""
    return gain(layer_step(device))


def _machine(device: torch.device) -> str:
    """What the choice depends on, in words."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    models = [line for line in _cpu_facts() if line.startswith(("model name", "Model"))]
    named = models[0].partition(":")[2].strip() if models else platform.processor()
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{device.type} {platform.machine()} {named} {capability}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def _cpu_facts() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


def choose(device: torch.device, root: Path = Path(), measure: Callable[[torch.device], float] = measured) -> Precision:
    """The precision that this machine was found to be faster in; it is measured where nothing is kept of it."""
    path, machine = shared_dir(root) / FILE, _machine(device)
    kept = _kept(path)
    if machine not in kept:
        found = measure(device)
        chosen: Precision = "bfloat16" if found >= GAIN else "float32"
        print(f"train.precision: auto is {chosen} here: bfloat16 is {found:.2f} times as fast as float32 ({machine})")
        kept[machine] = {"precision": chosen, "gain": found}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(kept, path, digits=3)
    return kept[machine]["precision"]


def _kept(path: Path) -> dict[str, Any]:
    """What was measured, by machine; nothing of a file that cannot be read, so that it is measured again."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {machine: each for machine, each in found.items() if each["precision"] in get_args(Precision)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
