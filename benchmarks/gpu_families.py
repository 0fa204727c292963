"""Every family on a GPU: time of maps, memory of training beside the doctor's plan, a training step and a guided sampling.

Transformers have random bfloat16 weights at their published width and three double-stream blocks (six single-stream ones where
there are any); resolution, prompt length and batch size are the preset's, LoRA is its arm `text_only` on all double-stream blocks,
or on all single-stream ones where there are no others.
Per release of `_families.RELEASES`:

- `maps`: as in `benchmarks.families`, by the wall clock, the device waited for.
- `training`: seconds of a third step of AdamW on LoRA under an arm's own velocity, with and without gradient checkpointing, and the
  largest allocated bytes over the steps, beside what `sgpipe doctor` plans for a transformer of as many blocks (weights, LoRA with
  its moments, activations; without VAE and CUDA context). Sixteen rows before the prompt's get gradients, as in that plan.
- `sampling`: seconds of two steps of two images with guidance: by two forwards, or as an input where the transformer takes one.

Run `python -m benchmarks.gpu_families`, minutes on one GPU; the largest weights are 12 GB (FLUX.2-dev). Without a GPU it says that
it did not run and writes nothing. `--tiny` takes the same steps on narrow transformers on the CPU, for the test.
"""

import dataclasses
import gc
import math
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from msgspec.structs import replace
from rich.console import Console
from rich.table import Table

from benchmarks._families import RELEASES, Random, Release, map_options
from benchmarks.families import measure_time
from sgpipe.arms.adapter import build
from sgpipe.arms.kinds.base import Sections
from sgpipe.arms.model import ArmModel
from sgpipe.arms.resolve import Arm, resolve
from sgpipe.backbones.base import TextCondition
from sgpipe.backbones.rectified_flow import interpolate, noise, velocity_target
from sgpipe.doctor.memory import GIB, GRAPH_TOKENS, measure
from sgpipe.doctor.plan import TRAINED_BYTES
from sgpipe.params.blocks import Blocks
from sgpipe.runs.atomic import DIGITS, write_json
from sgpipe.training.loop import adamw

SCALE, STEPS, BATCH = 4.0, 2, 2
VARIANTS = {"eager": False, "eager, checkpointing": True}


@dataclasses.dataclass(frozen=True)
class Job:
    """A release as it is measured: its sections with the few blocks, and what its transformer is changed to."""

    release: Release
    sections: dict[str, Any]
    changes: dict[str, Any]

    @classmethod
    def of(cls, release: Release, params: Path, tiny: bool) -> "Job":
        """Of few blocks, at the real width or narrow."""
        sections = release.sections(params)
        changes = {**release.few, **(release.narrow(128) if tiny else {})}
        layout = release.layout({**release.configs["transformer"], **changes})
        sections["backbone"] = replace(
            sections["backbone"], double_blocks=layout.double_blocks, single_blocks=layout.single_blocks, dtype="bfloat16"
        )
        if tiny:
            side = 4 * layout.pixels_per_token
            sections["backbone"] = replace(sections["backbone"], resolution=side, max_sequence_length=16)
        every, none = Blocks.parse("all"), Blocks.parse("none")
        double, single = (every, none) if layout.double_blocks else (none, every)
        sections["lora"] = replace(sections["lora"], blocks=double, single_blocks=single)
        return cls(release, sections, changes)

    def arm(self) -> Arm:
        """The preset's arm of LoRA alone."""
        return resolve("text_only", self.sections["arms"]["text_only"], Sections.of(self.sections))

    def open(self, device: torch.device) -> Random:
        """Fresh random weights on the device, once those of before are gone."""
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        return Random.open(self.release, device, torch.bfloat16, self.sections["backbone"].max_sequence_length, self.changes)


def clock() -> float:
    """Seconds by the wall, once the GPU has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def training_step(model: ArmModel, optimiser: torch.optim.Optimizer, text: TextCondition, resolution: int, seed: int) -> float:
    """One step on random latents and noise, with gradients of the rows before the prompt's; its loss."""
    shape, count = model.denoiser.layout.latent_shape(resolution), len(text.states)
    device = model.denoiser.device
    latents, epsilon = (noise(range(first, first + count), shape).to(device) for first in (seed, seed + count))
    t = torch.full([count], 0.7, device=device)
    given = dataclasses.replace(text, states=text.states.detach().requires_grad_())
    velocity = model.velocity(interpolate(latents, epsilon, t), t, given)
    loss = (velocity.float() - velocity_target(latents, epsilon)).square().mean()
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    optimiser.step()
    return loss.item()


def measure_training(job: Job, device: torch.device) -> dict[str, Any]:
    """See `training` above, without the plan. Raises `ValueError` for weights without a gradient, or a loss that is not finite."""
    backbone, train, arm = job.sections["backbone"], job.sections["train"], job.arm()
    on_gpu, found = device.type == "cuda", {}
    gc.collect()
    before = torch.cuda.memory_allocated(device) if on_gpu else 0
    random = job.open(device)
    model = build(random.denoiser, backbone, arm, text_scale=1.0)
    weights = model.trainable()
    optimiser = adamw(weights, arm.train.optimiser)
    prompt = random.text((random.tokens,) * train.batch_size)
    tokens = random.concepts(train.batch_size, GRAPH_TOKENS)
    text = dataclasses.replace(prompt, states=torch.cat([tokens, prompt.states], dim=1), prepended=GRAPH_TOKENS)
    transformer: Any = random.denoiser.transformer
    for name, checkpointing in VARIANTS.items():
        (transformer.enable_gradient_checkpointing if checkpointing else transformer.disable_gradient_checkpointing)()
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(device)
        start = loss = 0.0
        for step in range(3):  # up-projections start at 0: in the first step those before them get none
            start = clock()
            loss = training_step(model, optimiser, text, backbone.resolution, step)
        found[name] = {"seconds": clock() - start, "loss": loss}
        if on_gpu:
            found[name]["peak_bytes"] = torch.cuda.max_memory_allocated(device) - before
        silent = [key for key, weight in weights.items() if weight.grad is None or not weight.grad.any()]
        if silent or not math.isfinite(loss):
            raise ValueError(
                f"{job.release.model}, {name}: loss {loss}, {len(silent)} of {len(weights)} weights without a gradient"
            )
    return found


def planned(job: Job) -> dict[str, int]:
    """Bytes that `sgpipe doctor` plans for the transformer's part of these steps."""
    release, backbone = job.release, job.sections["backbone"]
    configs = {**release.configs, "transformer": release.configs["transformer"] | job.changes}
    settings: Any = job.arm().settings
    need = measure(configs, release.layout(configs["transformer"]), backbone, settings.lora, job.sections["train"])
    weights = need.sizes["transformer"].bytes(backbone.dtype) + need.lora * TRAINED_BYTES
    return {"eager": int(weights + need.train), "eager, checkpointing": int(weights + need.train_checkpointed)}


def measure_sampling(random: Random, resolution: int) -> dict[str, Any]:
    """See `sampling` above. Raises `ValueError` for latents that are not finite, or that guidance does not change."""
    denoiser, seeds = random.denoiser, list(range(BATCH))
    empty = random.text((random.tokens,), seed=1)
    by_input = denoiser.layout.guidance

    def sample(scale: float) -> torch.Tensor:
        text = random.text((random.tokens,) * BATCH)
        return denoiser.sample(text, seeds, resolution, STEPS, scale, unconditional=None if by_input else empty)

    plain = sample(1.0)
    start = clock()
    latents = sample(SCALE)
    seconds = clock() - start
    if not latents.isfinite().all() or torch.equal(plain, latents):
        raise ValueError(f"{random.release.model}: latents of guidance {SCALE:g} are not finite, or those of guidance 1")
    return {"seconds": seconds, "scale": SCALE, "forwards_per_step": 1 if by_input else 2}


def measure_release(job: Job, device: torch.device, pairs: int, plan: bool) -> dict[str, Any]:
    """All figures of one release."""
    backbone = job.sections["backbone"]
    training = measure_training(job, device)
    random = job.open(device)
    real = job.release.layout(job.release.configs["transformer"])
    options = map_options(job.sections["maps"], real, random.layout)
    return {
        "maps": measure_time(random, options, backbone.resolution, pairs, clock),
        "training": training,
        "planned_bytes": planned(job) if plan else None,
        "sampling": measure_sampling(random, backbone.resolution),
        "resolution": backbone.resolution,
        "text_rows": random.text((random.tokens,)).states.shape[1],
        "batch": job.sections["train"].batch_size,
    }


def show(found: dict[str, dict[str, Any]]) -> Table:
    """A row per release; without a GPU memory is not known."""
    shown = Table("family", "maps", "s/step", "checkpointing", "peak GiB", "planned GiB", "guided sampling, s")
    for name, row in found.items():
        steps, plan = row["training"], row["planned_bytes"]
        peaks = [f"{step['peak_bytes'] / GIB:.2f}" for step in steps.values() if "peak_bytes" in step]
        shown.add_row(
            name,
            f"× {row['maps']['ratio']:.3f}",
            *(f"{step['seconds']:.3f}" for step in steps.values()),
            " · ".join(peaks) or "–",
            " · ".join(f"{size / GIB:.2f}" for size in plan.values()) if plan else "–",
            f"{row['sampling']['seconds']:.3f}",
        )
    return shown


def main(
    family: Annotated[list[str] | None, typer.Option(help=f"measure this alone; repeatable: {', '.join(RELEASES)}")] = None,
    pairs: Annotated[int, typer.Option(min=1, help="pairs of samplings timed")] = 15,
    tiny: Annotated[bool, typer.Option("--tiny", help="narrow transformers on the CPU")] = False,
    plan: Annotated[bool, typer.Option(help="plan the memory, too")] = True,
    params: Annotated[Path, typer.Option(help="parameter file under the presets")] = Path("params.yaml"),
    out: Annotated[Path, typer.Option(help="metrics file")] = Path("metrics/gpu_families.json"),
) -> None:
    """Measure, print, write."""
    if unknown := sorted(set(family or ()) - set(RELEASES)):
        raise typer.BadParameter(f"got {unknown[0]!r}; valid: {', '.join(RELEASES)}", param_hint="--family")
    if not tiny and not torch.cuda.is_available():
        print("GPU: not run, none was found (--tiny takes the same steps on the CPU)", file=sys.stderr)
        return
    device = torch.device("cpu" if tiny else "cuda")
    found: dict[str, dict[str, Any]] = {}
    for name in family or RELEASES:
        found[name] = measure_release(Job.of(RELEASES[name], params, tiny), device, pairs, plan)
        told = {"device": "CPU" if tiny else torch.cuda.get_device_name(device), "pairs": pairs, "families": found}
        write_json(told, out, DIGITS)
        print(f"{name}: measured", flush=True)
    Console(width=132).print(show(found))


if __name__ == "__main__":
    typer.run(main)
