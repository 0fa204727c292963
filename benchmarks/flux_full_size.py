"""LoRA training of FLUX at full size with random weights: seconds per step, peak memory, share of the GPU's peak that is used.

- `flops`: of one training step, matrix products and attention, forward and backward, counted on the meta device.
- `planned`: memory of the same step by `sgpipe doctor`'s dry run on the meta device.
- `timed`: steps of the training loop itself (batch, graph tokens, losses, AdamW), eager and with torch.compile, each with and
  without gradient checkpointing. Weights, latents and prompts are random; shapes, precision, LoRA and tokens are the preset's.

Model FLOP utilisation is flops / (seconds × the GPU's dense bfloat16 peak); what checkpointing computes twice does not count.

Run `python -m benchmarks.flux_full_size`. Without a GPU the first two are printed and the third is reported as not run;
`--config small` takes the same steps with a small transformer on any machine. `--check` fails if the transformer has not
11,891,178,560 or LoRA not 2,359,296 parameters, or if a GPU's eager step takes longer than the predecessor's 2.55 s on an A6000.
"""

import statistics
import sys
import time
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Final

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from benchmarks._random_flux import Dataless, Work, open_training, work_of
from sgpipe.arms.adapter import counts
from sgpipe.backbones.families.flux import Flux
from sgpipe.doctor.memory import GIB, measure
from sgpipe.doctor.plan import ways
from sgpipe.doctor.published import PUBLISHED
from sgpipe.runs.atomic import DIGITS, write_json
from sgpipe.runs.processes import pick_device

PARAMETERS, LORA, SECONDS = 11_891_178_560, 2_359_296, 2.55
PEAKS: Final[tuple[tuple[str, float], ...]] = (
    ("H200", 989.4e12),
    ("H100 PCIe", 756.5e12),
    ("H100 80GB HBM3", 989.4e12),
    ("A100", 312e12),
    ("RTX A6000", 154.8e12),
    ("L40S", 362e12),
    ("RTX 4090", 165.2e12),
)
"""Dense bfloat16 products with float32 sums, FLOP/s, by a part of the name that CUDA gives: NVIDIA's data sheets of H200, H100,
A100 and L40S (half of what they state with sparsity), appendices of the white papers on GA102 and AD102."""
VARIANTS: Final = {
    "eager": (False, False),
    "eager, checkpointing": (False, True),
    "compiled": (True, False),
    "compiled, checkpointing": (True, True),
}
"""Whether blocks are compiled, and computed twice; compiled blocks cannot be had back, so they come last."""


def count_flops(work: Work) -> dict[str, Any]:
    """Parameters, and FLOPs of one step: forward, and the gradients that LoRA and graph tokens need."""
    with TemporaryDirectory() as folder:
        training = open_training(work, torch.device("meta"), Path(folder))
        with FlopCounterMode(display=False) as counter:
            loss, _ = training.objective(*training.batch(0))
            forward = counter.get_total_flops()
            loss.backward()
        model = training.objective.model
        assert isinstance(model, Dataless)
        own = set(model.adapter.parameters()["lora"])
        named = model.denoiser.transformer.named_parameters()
        return {
            "parameters": sum(value.numel() for name, value in named if name not in own),
            **counts(model),
            "forward_flops": forward,
            "step_flops": counter.get_total_flops(),
            "graph_tokens": model.given.shape[1] - work.sections["backbone"].max_sequence_length,
        }


def plan(work: Work) -> dict[str, float]:
    """Bytes that `sgpipe doctor` plans for the step, with its allowance for as many graph tokens as SGDiff gives."""
    backbone, lora, train = (work.sections[name] for name in ("backbone", "lora", "train"))
    layout = Flux().layout(work.transformer, work.vae)
    options = ways(measure(PUBLISHED[backbone.model], layout, backbone, lora, train))["LoRA training"]
    return {"eager": options[backbone.dtype], "eager, checkpointing": options["checkpointing"]}


def peak_rate(name: str) -> float | None:
    """Dense bfloat16 FLOP/s of a GPU by its name; None where it is not in the table."""
    return next((rate for part, rate in PEAKS if part in name), None)


def time_steps(work: Work, device: torch.device, steps: int, compiled: bool) -> dict[str, dict[str, float]]:
    """Median, lowest and highest seconds of a step, and the peak of allocated bytes on a GPU, by variant."""
    found = {}
    wait = partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None
    with TemporaryDirectory() as folder:
        training = open_training(work, device, Path(folder))
        transformer: Any = training.objective.model.denoiser.transformer
        fused = False
        for name, (fuse, twice) in VARIANTS.items():
            if fuse and not compiled:
                continue
            if fuse and not fused:
                transformer.compile_repeated_blocks(fullgraph=True, dynamic=False)
                fused = True
            (transformer.enable_gradient_checkpointing if twice else transformer.disable_gradient_checkpointing)()
            for _ in range(3):
                training.engine.update()
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            seconds = []
            for _ in range(steps):
                wait()
                start = time.perf_counter()
                training.engine.update()
                wait()
                seconds.append(time.perf_counter() - start)
            found[name] = {
                "seconds": statistics.median(seconds), "lowest": min(seconds), "highest": max(seconds), "steps": steps,
            }  # fmt: skip
            if device.type == "cuda":
                found[name]["peak_bytes"] = torch.cuda.max_memory_allocated(device)
    return found


def table(
    flops: dict[str, Any], planned: dict[str, float], timed: dict[str, dict[str, float]], rate: float | None, full: bool
) -> Table:
    """A row per variant; what was not measured is said to be so."""
    shown = Table("variant", "s/step", "of 2.55 s", "peak GiB", "planned GiB", "MFU")
    for name in VARIANTS:
        row = timed.get(name, {})
        seconds = row.get("seconds")
        shown.add_row(
            name,
            "not run" if seconds is None else f"{seconds:.3f}",
            f"{seconds / SECONDS:.2f}" if seconds is not None and full else "–",
            f"{row['peak_bytes'] / GIB:.1f}" if "peak_bytes" in row else "–",
            f"{planned[name] / GIB:.1f}" if name in planned else "–",
            f"{flops['step_flops'] / seconds / rate:.1%}" if seconds is not None and rate else "–",
        )
    return shown


def main(
    config: Annotated[str, typer.Option(help="full, or small: the same steps of a small transformer")] = "full",
    preset: Annotated[str, typer.Option(help="preset whose training is measured")] = "flux-schnell-vg",
    steps: Annotated[int, typer.Option(min=1, help="steps timed, after three that are not")] = 20,
    compiled: Annotated[bool, typer.Option(help="measure with torch.compile, too")] = True,
    planned: Annotated[bool, typer.Option(help="plan the memory, too (full size only)")] = True,
    params: Annotated[Path, typer.Option(help="parameter file under the preset")] = Path("params.yaml"),
    out: Annotated[Path, typer.Option(help="metrics file")] = Path("metrics/flux_full_size.json"),
    check: Annotated[bool, typer.Option("--check", help="fail if a bar is missed")] = False,
) -> None:
    """Measure, print, write."""
    if config not in ("full", "small"):
        raise typer.BadParameter(f"got {config!r}; valid: full, small", param_hint="--config")
    work, device = work_of(params, preset, config), pick_device("auto", 0)  # type: ignore[arg-type]
    backbone, lora, train = (work.sections[name] for name in ("backbone", "lora", "train"))
    full, on_gpu = config == "full", device.type == "cuda"
    flops = count_flops(work)
    memory = plan(work) if planned and full else {}
    timed = time_steps(work, device, steps, compiled) if on_gpu or not full else {}
    name = torch.cuda.get_device_name(device) if on_gpu else f"CPU, {torch.get_num_threads()} threads"
    rate = peak_rate(name) if on_gpu and backbone.dtype == "bfloat16" else None
    print(
        f"{preset}, {config}: {flops['parameters']:,} parameters, LoRA {flops['lora_parameters']:,} on blocks {lora.blocks}, graph "
        f"tokens {flops['token_parameters']:,}; {backbone.resolution} px, {backbone.max_sequence_length} + "
        f"{flops['graph_tokens']} text tokens, batch {train.batch_size}, {backbone.dtype}"
    )
    print(f"a step is {flops['step_flops'] / 1e12:.4g} TFLOP, {flops['forward_flops'] / 1e12:.4g} of it forward")
    if full:
        share = flops["step_flops"] / SECONDS / dict(PEAKS)["RTX A6000"]
        print(f"the predecessor: {SECONDS} s/step on an RTX A6000, an MFU of {share:.1%} if its step was this one")
    Console(width=110).print(table(flops, memory, timed, rate, full))
    print(f"timed on: {name}" if timed else "timing: not run, no GPU was found (`--config small` times a small one here)")
    if timed and on_gpu and rate is None:
        print(f"MFU is not stated: the peak of {name} in {backbone.dtype} is not in the table")
    write_json(
        {
            "preset": preset, "config": config, "device": name if timed else None, "flops": flops, "planned_bytes": memory,
            "timed": timed or None, "peak_flops_per_second": rate,
        },
        out,
        DIGITS,
    )  # fmt: skip
    if check and full and (flops["parameters"], flops["lora_parameters"]) != (PARAMETERS, LORA):
        print(f"error: {PARAMETERS:,} parameters and {LORA:,} in LoRA are wanted", file=sys.stderr)
        sys.exit(1)
    if check and full and timed and timed["eager"]["seconds"] > SECONDS:
        print(f"error: the bar is {SECONDS} s per eager step", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    typer.run(main)
