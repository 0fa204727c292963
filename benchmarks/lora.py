"""What a training step costs over the bare forward and backward of the same model, LoRA and batch.

- `time`: medians of paired steps, one of the loop (data, tokens, losses, AdamW, log) and one bare, in alternating order.
- `memory`: the largest resident size of a process that takes loop steps, over that of one that takes bare ones (on a GPU: of
  allocated bytes).
- `data`: share of a step that waits for data.
- `training`: steps of the whole default times the median, and fusing the blocks before.
- `shared_prefix`: one step of the loop whose graph tokens enter at block `--enter`, over the bare step of the default, whose tokens
  enter at block 0; time and memory. `shared_prefix_loss_difference`: the largest of a loss part from two forwards
  without a shared prefix.
- `control_losses`: the control losses of one validation with tokens that enter there, over those with tokens at block 0.
- `…_flops_ratio`, `…_kept_ratio`: the same of work that no machine changes: FLOPs of matrix products, and bytes that autograd
  keeps for the backward, of an eager step. Of k blocks of equal size, of which tokens enter at the ℓ-th, forwards of g⁺ and g⁻ from
  there on and a shared one before are (2(k − ℓ) + ℓ) / 2k of a forward, and the backward is (k − ℓ) / k of one: 0.75 of both for
  ℓ = 7 of 21. Control losses are (5(k − ℓ) + ℓ) / 6k: 0.61.

The model and data are those of params.yaml. Run `python -m benchmarks.lora`; `--check` fails above 1.03 × the time, 1.05 × the
memory, 2 % of waiting or 8 minutes, and above 0.7 × the time and 0.75 × the memory with a shared prefix, 0.5 × for control losses.
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
from torch.utils.flop_counter import FlopCounterMode

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
from sgpipe.training import controls
from sgpipe.training.examples import Sources, read_data
from sgpipe.training.fit import prepare
from sgpipe.training.loop import Training
from sgpipe.training.objective import Objective, sample_losses

TIME_RATIO, MEMORY_RATIO, WAITING, SECONDS = 1.03, 1.05, 0.02, 480.0
SHARED = {"shared_prefix_ratio": 0.70, "shared_prefix_memory_ratio": 0.75, "control_losses_ratio": 0.50}


def open_training(params: Path, folder: Path, enter: int = 0) -> Training:
    """The default's training, without its validations, with graph tokens that enter at a block."""
    sections = load_all(params)
    sections["graph_tokens"] = replace(sections["graph_tokens"], enter=enter)
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


def control_losses(training: Training) -> Callable[[], None]:
    """The control losses of all val triples, the base's among them, as the loop measures them."""

    def step() -> None:
        with torch.compiler.set_stance("force_eager"):
            controls.measure(training.objective, training.objective.data.held_out, training.train)
        synchronise()

    return step


def loss_difference(training: Training) -> float:
    """Largest difference of a part of the first batch's loss, g⁺ and g⁻ with a shared prefix or each in a forward of its own."""
    noised, positive, negative = training.batch(0)
    objective, target = training.objective, velocity_target(training.batch(0)[0].latents, training.batch(0)[0].noise)
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        _, parts = objective(noised, positive, negative)
        alone = [sample_losses(objective.velocity(noised, each), target) for each in (positive, negative)]
    return max(float((parts[name] - each).abs().max()) for name, each in zip(("flow", "negative"), alone, strict=True))


def counted(training: Training, step: Callable[[], None]) -> dict[str, int]:
    """FLOPs of an eager step, and the bytes that autograd keeps for its backward, without the weights themselves."""
    weights = {each.untyped_storage().data_ptr() for each in training.model.denoiser.transformer.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with (
        torch.compiler.set_stance("force_eager"),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        FlopCounterMode(display=False) as counter,
    ):
        step()
    return {"flops": counter.get_total_flops(), "kept": sum(kept.values())}


def work_ratios(training: Training, late: Training) -> dict[str, float]:
    """Work with a shared prefix over work without: of a step, and of control losses."""
    bare, shared = counted(training, bare_step(training)), counted(late, loop_step(late))
    today, validated = (counted(each, control_losses(each)) for each in (training, late))
    return {
        "shared_prefix_flops_ratio": shared["flops"] / bare["flops"],
        "shared_prefix_kept_ratio": shared["kept"] / bare["kept"],
        "control_losses_flops_ratio": validated["flops"] / today["flops"],
    }


def paired(steps: dict[str, Callable[[], None]], pairs: int) -> dict[str, list[float]]:
    """Seconds of each step, taken by turns in alternating order."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for pair in range(pairs):
        for name in list(steps)[:: 1 if pair % 2 else -1]:
            start = time.perf_counter()
            steps[name]()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio_of(seconds: dict[str, list[float]], name: str, to: str) -> float:
    """Median of the ratios of paired steps."""
    return statistics.median(one / other for one, other in zip(seconds[name], seconds[to], strict=True))


def measured_memory(kind: str, params: Path, enter: int) -> int:
    """`peak_memory` of a process that takes steps of one kind."""
    command = [sys.executable, "-m", "benchmarks.lora", "--only", kind, "--params", str(params), "--enter", str(enter)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(json.loads(done.stdout.splitlines()[-1])["peak"])


def main(
    params: Annotated[Path, typer.Option(help="parameter file")] = Path("params.yaml"),
    pairs: Annotated[int, typer.Option(min=1, help="pairs of steps timed")] = 15,
    only: Annotated[str | None, typer.Option(help="take three steps, `bare`, `loop` or `shared`, and print the peak")] = None,
    enter: Annotated[int, typer.Option(min=1, help="block at which tokens enter behind a shared prefix")] = 7,
    out: Annotated[Path, typer.Option(help="metrics file")] = Path("metrics/lora_cost.json"),
    check: Annotated[bool, typer.Option("--check", help="fail if a bar is missed")] = False,
    count: Annotated[bool, typer.Option("--count", help="count work alone and print it; measure and write nothing")] = False,
) -> None:
    """Measure, print, write."""
    makers: dict[str, Callable[[Path], Callable[[], None]]] = {
        "bare": lambda folder: bare_step(open_training(params, folder)),
        "loop": lambda folder: loop_step(open_training(params, folder)),
        "shared": lambda folder: loop_step(open_training(params, folder, enter)),
    }
    with TemporaryDirectory() as folder:
        if only is not None:
            step = makers[only](Path(folder))
            for _ in range(3):
                step()
            print(json.dumps({"peak": peak_memory(pick_device("auto", 0))}))
            return
        training, late = open_training(params, Path(folder)), open_training(params, Path(folder), enter)
        worked = work_ratios(training, late)
        if count:
            print(json.dumps(worked))
            return
        steps = {"bare": bare_step(training), "loop": loop_step(training)}
        begun = time.perf_counter()
        for step in steps.values():
            step()
        warm = time.perf_counter() - begun
        steps["shared"] = loop_step(late)
        steps["shared"]()
        training.waiting = 0.0
        seconds = paired(steps, pairs)
        validations = {"today": control_losses(training), "shared": control_losses(late)}
        validated = paired(validations, max(1, pairs // 5))
        differs = loss_difference(late)
    ratios = [loop / bare for bare, loop in zip(seconds["bare"], seconds["loop"], strict=True)]
    memory = {kind: measured_memory(kind, params, enter) for kind in makers}
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
        "enter": enter,
        "shared_prefix_ratio": ratio_of(seconds, "shared", "bare"),
        "shared_prefix_memory_ratio": memory["shared"] / memory["bare"],
        "shared_prefix_loss_difference": differs,
        "control_losses_ratio": ratio_of(validated, "shared", "today"),
        **worked,
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
        f"{found['training_seconds']:.0f} s; with tokens that enter at block {enter}: step × {found['shared_prefix_ratio']:.3f}, "
        f"peak × {found['shared_prefix_memory_ratio']:.3f}, control losses × {found['control_losses_ratio']:.3f}, losses within "
        f"{differs:.1e}"
    )
    write_json(found, out, DIGITS)
    if check and (
        found["ratio"] > TIME_RATIO
        or found["memory_ratio"] > MEMORY_RATIO
        or found["data_share"] > WAITING
        or found["training_seconds"] > SECONDS
        or any(found[name] > bar for name, bar in SHARED.items())
    ):
        print(
            f"error: the bars are {TIME_RATIO} × the time, {MEMORY_RATIO} × the memory, {WAITING:.0%} of waiting, {SECONDS:.0f} s "
            f"and {SHARED}",
            file=sys.stderr,
        )
        sys.exit(1)


if __name__ == "__main__":
    typer.run(main)
