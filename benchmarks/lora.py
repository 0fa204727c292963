"""What a training step costs over the bare forward and backward of the same model, LoRA and batch.

- `time`: medians of paired steps, one of the loop (data, tokens, losses, AdamW, log) and one bare, in alternating order.
- `memory`: the largest resident size of a process that takes loop steps, over that of one that takes bare ones (on a GPU: of
  allocated bytes).
- `data`: share of a step that waits for data.
- `training`: steps of the whole default times the median, and fusing the blocks before.

The model and data are those of params.yaml. Run `python -m benchmarks.lora`; `--check` fails above 1.03 × the time, 1.05 × the
memory, 2 % of waiting or 8 minutes.
"""

import dataclasses
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import torch
import typer
from msgspec.structs import replace

from sgpipe.arms.adapter import build
from sgpipe.arms.kinds.base import Sections
from sgpipe.arms.resolve import resolve
from sgpipe.backbones.config import Backbone
from sgpipe.backbones.denoiser import Denoiser
from sgpipe.backbones.rectified_flow import interpolate, velocity_target
from sgpipe.optim.log import peak_memory
from sgpipe.params.show import load_all
from sgpipe.runs.atomic import DIGITS, write_json
from sgpipe.runs.processes import Processes, pick_device
from sgpipe.training.examples import Sources, read_data
from sgpipe.training.fit import prepare
from sgpipe.training.loop import Training
from sgpipe.training.objective import Objective

TIME_RATIO, MEMORY_RATIO, WAITING, SECONDS = 1.03, 1.05, 0.02, 480.0


def open_training(params: Path, folder: Path) -> Training:
    """The default's training, without its validations."""
    sections = load_all(params)
    arm = resolve("graph", sections["arms"]["graph"], Sections.of(sections))
    backbone: Backbone = sections["backbone"]
    processes = Processes(0, 1, pick_device("auto", 0))
    data = read_data(Sources(), backbone)
    model = build(Denoiser.load(backbone, processes.device), backbone, arm, data.names.rms)
    prepare(model, arm)
    return Training(Objective(model, data, arm.train.losses), replace(arm.train, save_every=1 << 30), folder, processes)


def bare_step(training: Training) -> Callable[[], None]:
    """Forward and backward of the loop's first batch, whose inputs are made once."""
    noised, positive, negative = training.batch(0)
    said = positive + negative if training.train.losses.contrastive else positive
    objective, model = training.objective, training.objective.model
    repeat = len(said.texts) // len(noised.latents)
    condition = model.condition(said.graphs, said.texts, objective.data.prompts.get(said.texts), objective.data.names)
    states = condition.states.detach().requires_grad_()
    fixed = dataclasses.replace(condition, states=states)
    z_t = interpolate(noised.latents, noised.noise, noised.t).repeat(repeat, 1, 1, 1)
    target = velocity_target(noised.latents, noised.noise).repeat(repeat, 1, 1, 1)
    t = noised.t.repeat(repeat)

    def step() -> None:
        for weight in training.engine.weights.values():
            weight.grad = None
        states.grad = None
        velocity = model.velocity(z_t, t, fixed)
        (velocity.float() - target).square().mean().backward()
        synchronise()

    return step


def synchronise() -> None:
    """Wait for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def loop_step(training: Training) -> Callable[[], None]:
    """One step of the loop."""

    def step() -> None:
        training.engine.update()
        synchronise()

    return step


def measured_memory(kind: str, params: Path) -> int:
    """`peak_memory` of a process that takes steps of one kind."""
    command = [sys.executable, "-m", "benchmarks.lora", "--only", kind, "--params", str(params)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(json.loads(done.stdout.splitlines()[-1])["peak"])


def main(
    params: Annotated[Path, typer.Option(help="parameter file")] = Path("params.yaml"),
    pairs: Annotated[int, typer.Option(min=1, help="pairs of steps timed")] = 15,
    only: Annotated[str | None, typer.Option(help="take three steps, `bare` or `loop`, and print the peak")] = None,
    out: Annotated[Path, typer.Option(help="metrics file")] = Path("metrics/lora_cost.json"),
    check: Annotated[bool, typer.Option("--check", help="fail if a bar is missed")] = False,
) -> None:
    """Measure, print, write."""
    with TemporaryDirectory() as folder:
        training = open_training(params, Path(folder))
        steps = {"bare": bare_step(training), "loop": loop_step(training)}
        if only is not None:
            for _ in range(3):
                steps[only]()
            print(json.dumps({"peak": peak_memory(pick_device("auto", 0))}))
            return
        begun = time.perf_counter()
        for step in steps.values():
            step()
        warm = time.perf_counter() - begun
        training.waiting = 0.0
        seconds: dict[str, list[float]] = {"bare": [], "loop": []}
        for pair in range(pairs):
            for name in ("bare", "loop") if pair % 2 else ("loop", "bare"):
                start = time.perf_counter()
                steps[name]()
                seconds[name].append(time.perf_counter() - start)
    ratios = [loop / bare for bare, loop in zip(seconds["bare"], seconds["loop"], strict=True)]
    memory = {kind: measured_memory(kind, params) for kind in ("bare", "loop")}
    median = statistics.median(seconds["loop"])
    found = {
        "bare_seconds": statistics.median(seconds["bare"]),
        "loop_seconds": median,
        "ratio": statistics.median(ratios),
        "ratio_lowest": min(ratios),
        "ratio_highest": max(ratios),
        "data_share": training.waiting / sum(seconds["loop"]),
        "bare_peak_bytes": memory["bare"],
        "loop_peak_bytes": memory["loop"],
        "memory_ratio": memory["loop"] / memory["bare"],
        "warm_up_seconds": warm,
        "training_steps": training.engine.steps,
        "training_seconds": warm + median * training.engine.steps,
        "pairs": pairs,
        "threads": torch.get_num_threads(),
    }
    print(
        f"step {median:.3f} s, bare {found['bare_seconds']:.3f} s, ratio {found['ratio']:.3f} "
        f"({found['ratio_lowest']:.3f} to {found['ratio_highest']:.3f} over {pairs} pairs); waiting for data "
        f"{found['data_share']:.2%}; peak × {found['memory_ratio']:.3f}; {training.engine.steps} steps in about "
        f"{found['training_seconds']:.0f} s"
    )
    write_json(found, out, DIGITS)
    if check and (
        found["ratio"] > TIME_RATIO
        or found["memory_ratio"] > MEMORY_RATIO
        or found["data_share"] > WAITING
        or found["training_seconds"] > SECONDS
    ):
        print(
            f"error: the bars are {TIME_RATIO} × the time, {MEMORY_RATIO} × the memory, {WAITING:.0%} of waiting and "
            f"{SECONDS:.0f} s",
            file=sys.stderr,
        )
        sys.exit(1)


if __name__ == "__main__":
    typer.run(main)
