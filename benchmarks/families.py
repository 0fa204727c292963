"""Every family of transformers through the seam: equality with its pipeline, maps' costs, LoRA and layout at the real size.

For each release of `_families.RELEASES`, with random weights:

- `velocity_max_abs`: largest difference of any output of the transformer over a sampling of two steps, between `Denoiser.sample`
  and the pipeline of diffusers, called with the same encoded prompts and seeds. The second output depends on the first step, too.
- `batch_max_abs`: three prompts with graphs of 1, 4 and 0 tokens in a batch against each alone, over the largest absolute velocity;
  where prompts have their own length, of unequal length, too.
- `maps_time_ratio`: median of ratios of paired two-step samplings of one image with maps of the preset's groups and three concepts
  over those without, in CPU seconds of this process: other jobs do not count. All three so far on the CPU, float32, at a small
  width and few blocks.
- `maps_flop_share`: FLOPs that maps of the preset's groups add to a forward at the real size, the preset's resolution and prompt
  length, counted on the meta device. Where a transformer has double-stream blocks, those of its single-stream ones (FLUX.1's) are
  not in it, and what they add stands in `single_flop_share`, null without any.
- `lora_parameters`: numbers in the LoRA of the preset's arm at the real size.
- `tensors_checked` of `tensors`: weights of the real-size transformer whose shape is what the layout predicts from the published
  config.json: all projections of attention that it names. The rest (norms, MLPs, embedders, biases) is not compared with anything.

Run `python -m benchmarks.families`; `--check` fails for velocities that are not the pipeline's to the bit, a batch that differs by
more than 1e-5, above 1.08 × the time or 0.3 % more FLOPs.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import diffusers
import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from benchmarks._families import RELEASES, Random, Release, checked_tensors, double_alone, map_options, width_of
from benchmarks.attention_maps import TIME_RATIO, paired
from sgpipe.arms.lora import attach, count, target_modules
from sgpipe.attention_maps.options import MapOptions
from sgpipe.attention_maps.stream import concept_stream
from sgpipe.backbones.base import TextCondition
from sgpipe.backbones.rectified_flow import noise
from sgpipe.doctor.memory import build, planned_lora
from sgpipe.graph_encoder.injection import prepend
from sgpipe.graph_encoder.tokens import Tokens
from sgpipe.runs.atomic import DIGITS, write_json

FLOP_SHARE, BATCH = 0.003, 1e-5
CPU, META = torch.device("cpu"), torch.device("meta")
CONCEPTS, STEPS, SEEDS = 3, 2, (3, 1)
GRAPHS = (1, 4, 0)
"""Graph tokens of the samples of a batch."""


def pipeline_of(small: Random) -> Any:
    """The pipeline of diffusers around the very weights, without text encoders and without what the seam does to a transformer.

    Frozen as the seam's are: by whether a weight takes gradients `torch.matmul` folds a batch or not, under `no_grad`, too, and so
    rounds otherwise.
    """
    release = small.release
    transformer = type(small.denoiser.transformer).from_config(small.denoiser.transformer.config)
    transformer.load_state_dict(small.denoiser.transformer.state_dict())
    transformer.requires_grad_(False)
    vae = build(release.configs["vae"]).to_empty(device=CPU)  # its sizes are read, and no latent is decoded
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_config(dict(release.scheduler))
    texts = dict.fromkeys(release.family.text_parts)
    made = getattr(diffusers, release.pipeline)(transformer=transformer.eval(), vae=vae, scheduler=scheduler, **texts)
    made.set_progress_bar_config(disable=True)
    return made


def outputs_of(transformer: Any, run: Callable[[], object]) -> list[Tensor]:
    """What each forward of a transformer gave during `run`."""
    found: list[Tensor] = []
    keep = transformer.register_forward_hook(lambda _, given, made: found.extend(tree_leaves(made)))
    try:
        run()
    finally:
        keep.remove()
    return found


def measure_velocity(small: Random, side: int) -> float:
    """See `velocity_max_abs` above; `side` is that of the image in pixels."""
    release, denoiser = small.release, small.denoiser
    text, pipeline = small.text((small.tokens,) * len(SEEDS)), pipeline_of(small)
    mine = outputs_of(denoiser.transformer, lambda: denoiser.sample(text, SEEDS, side, STEPS, release.guidance))
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    theirs = outputs_of(
        pipeline.transformer,
        lambda: pipeline(
            **release.prompt(text), **release.call, height=side, width=side, num_inference_steps=STEPS, generator=generators,
            output_type="latent",
        ),
    )  # fmt: skip
    if len(theirs) < STEPS or len(mine) != len(theirs):
        raise ValueError(f"{release.model}: {len(mine)} outputs through the seam, {len(theirs)} in the pipeline")
    return torch.stack([(a - b).abs().max() for a, b in zip(mine, theirs, strict=True)]).max().item()  # NaN stays NaN


def _with_graphs(text: TextCondition, counts: tuple[int, ...], states: Tensor) -> TextCondition:
    """Prompts behind graph tokens, of `counts[n]` of the rows `states[n]` each, as arms put them there."""
    longest = max(counts)
    padded = torch.stack(
        [torch.cat([row[:n], row.new_zeros(longest - n, row.shape[1])]) for row, n in zip(states, counts, strict=True)]
    )
    return prepend(Tokens(padded, counts, torch.full(padded.shape[:2], -1)), text)


@torch.no_grad()
def measure_batch(small: Random, side: int) -> float:
    """See `batch_max_abs` above."""
    family, tokens = small.release.family, small.tokens
    lengths = (tokens,) * 3 if family.fixed_length else (tokens, tokens // 2, tokens // 4)
    text, guidance = small.text(lengths), small.release.guidance
    graphs = small.concepts(len(GRAPHS), max(GRAPHS))
    latents, t = noise(range(3), small.layout.latent_shape(side)), torch.tensor([0.3, 0.9, 0.6])
    together = small.denoiser.velocity(latents, t, _with_graphs(text, GRAPHS, graphs), guidance)
    differences = []
    for row, own in enumerate(text.rows()):
        mine, at = TextCondition.cat([own]), slice(row, row + 1)
        alone = small.denoiser.velocity(latents[at], t[at], _with_graphs(mine, GRAPHS[at], graphs[at]), guidance)
        differences.append((together[at] - alone).abs().max() / alone.abs().max())
    return torch.stack(differences).max().item()


def measure_time(
    small: Random, options: MapOptions, side: int, pairs: int, clock: Callable[[], float] = time.process_time
) -> dict[str, float]:
    """Paired samplings of `STEPS` steps of one image of `side` pixels, see `paired`."""
    denoiser, text, concepts = small.denoiser, small.text((small.tokens,)), small.concepts(1, CONCEPTS)
    grid = (denoiser.layout.grid(side),) * 2

    def plain() -> None:
        denoiser.sample(text, SEEDS[:1], side, STEPS, small.release.guidance)

    @torch.no_grad()
    def maps() -> None:
        with concept_stream(denoiser.transformer, concepts, grid, options) as stream:
            plain()
            stream.maps()

    return paired(plain, maps, pairs, clock)


@torch.no_grad()
def measure_flops(real: Random, options: MapOptions, resolution: int) -> dict[str, float | None]:
    """See `maps_flop_share` above, and TFLOP of the plain forward."""
    denoiser, text, concepts = real.denoiser, real.text((real.tokens,)), real.concepts(1, CONCEPTS)
    grid = (denoiser.layout.grid(resolution),) * 2
    latents = torch.empty(1, *denoiser.layout.latent_shape(resolution), device=META, dtype=denoiser.dtype)

    def forward() -> int:
        with FlopCounterMode(display=False) as counter:
            denoiser.velocity(latents, torch.empty(1, device=META), text, real.release.guidance)
        return counter.get_total_flops()

    def with_maps(chosen: MapOptions) -> int:
        with FlopCounterMode(display=False) as counter, concept_stream(denoiser.transformer, concepts, grid, chosen):
            denoiser.velocity(latents, torch.empty(1, device=META), text, real.release.guidance)
        return counter.get_total_flops()

    plain, counted = forward(), double_alone(options) if denoiser.layout.double_blocks else options
    less = plain if counted is None else with_maps(counted)
    more = with_maps(options)
    return {
        "plain_tflop": plain / 1e12,
        "maps_flop_share": None if counted is None else less / plain - 1,
        "single_flop_share": (more - less) / plain if more > less else None,
    }


def measure_lora(release: Release, sections: dict[str, Any]) -> int:
    """Numbers in the LoRA of the preset's arm on the real-size transformer."""
    config = release.configs["transformer"]
    layout, transformer = release.layout(config), build(config)
    lora = planned_lora(sections, layout)
    return count(attach(transformer, target_modules(layout, lora), lora, seed=0))


def measure_family(release: Release, params: Path, width: int, side: int, tokens: int, pairs: int) -> dict[str, Any]:
    """All figures of one release; `width`, `side` (image tokens along a side) and `tokens` are those of the small transformer."""
    sections = release.sections(params)
    backbone, maps = sections["backbone"], sections["maps"]
    small = Random.open(release, CPU, torch.float32, tokens, {**release.few, **release.narrow(width)})
    real_layout, pixels = release.layout(release.configs["transformer"]), side * small.layout.pixels_per_token
    equal = max(side // 2, 2) * small.layout.pixels_per_token
    timed = measure_time(small, map_options(maps, real_layout, small.layout), pixels, pairs)
    real = Random.open(release, META, torch.bfloat16, backbone.max_sequence_length)
    options = MapOptions(maps.groups, maps.normalisation, variant=maps.variant)
    checked, tensors = checked_tensors(release)
    return {
        "velocity_max_abs": measure_velocity(small, equal),
        "batch_max_abs": measure_batch(small, equal),
        "maps_time_ratio": timed["ratio"],
        "maps_time_ratio_lowest": timed["ratio_lowest"],
        "maps_time_ratio_highest": timed["ratio_highest"],
        "plain_cpu_seconds": timed["plain_seconds"],
        **measure_flops(real, options, backbone.resolution),
        "lora_parameters": measure_lora(release, sections),
        "tensors_checked": checked,
        "tensors": tensors,
        "small": {
            "width": width_of(small.denoiser.transformer.config),
            "double_blocks": small.layout.double_blocks,
            "single_blocks": small.layout.single_blocks,
            "image_tokens": side**2,
            "text_rows": small.text((tokens,)).states.shape[1],
            "pairs": pairs,
            "threads": torch.get_num_threads(),
        },
        "real": {"resolution": backbone.resolution, "prompt_tokens": backbone.max_sequence_length, "preset": release.preset},
    }


def missed(name: str, found: dict[str, Any]) -> list[str]:
    """The bars that a family misses, in words."""
    figures = {
        "velocity_max_abs": (found["velocity_max_abs"], 0.0),
        "batch_max_abs": (found["batch_max_abs"], BATCH),
        "maps_time_ratio": (found["maps_time_ratio"], TIME_RATIO),
        "maps_flop_share": (found["maps_flop_share"] or 0.0, FLOP_SHARE),
    }
    return [f"{name}: {key} is {value:.4g}, the bar {bar:g}" for key, (value, bar) in figures.items() if not value <= bar]


def main(
    family: Annotated[list[str] | None, typer.Option(help=f"measure this alone; repeatable: {', '.join(RELEASES)}")] = None,
    width: Annotated[int, typer.Option(min=128, help="width of the small transformer, a multiple of 128")] = 512,
    side: Annotated[int, typer.Option(min=2, help="image tokens along a side of the small transformer's image")] = 16,
    tokens: Annotated[int, typer.Option(min=8, help="tokens of its prompts")] = 64,
    pairs: Annotated[int, typer.Option(min=1, help="pairs of samplings timed")] = 25,
    params: Annotated[Path, typer.Option(help="parameter file under the presets")] = Path("params.yaml"),
    out: Annotated[Path, typer.Option(help="metrics file")] = Path("metrics/families.json"),
    check: Annotated[bool, typer.Option("--check", help="fail if a bar is missed")] = False,
) -> None:
    """Measure, print, write."""
    if unknown := sorted(set(family or ()) - set(RELEASES)):
        raise typer.BadParameter(f"got {unknown[0]!r}; valid: {', '.join(RELEASES)}", param_hint="--family")
    if width % 128:
        raise typer.BadParameter(f"got {width}; valid: a multiple of 128", param_hint="--width")
    titles = ("family", "velocity", "batch", "time with maps", "FLOPs", "single blocks", "LoRA", "tensors checked")
    shown, found = Table(*titles), {}
    for name in family or RELEASES:
        found[name] = row = measure_family(RELEASES[name], params, width, side, tokens, pairs)
        shares = ("–" if row[key] is None else f"{row[key]:+.3%}" for key in ("maps_flop_share", "single_flop_share"))
        write_json(found, out, DIGITS)
        print(f"{name}: measured", flush=True)
        shown.add_row(
            name, f"{row['velocity_max_abs']:.1e}", f"{row['batch_max_abs']:.1e}", f"× {row['maps_time_ratio']:.3f}", *shares,
            f"{row['lora_parameters']:,}", f"{row['tensors_checked']} of {row['tensors']}",
        )  # fmt: skip
    Console(width=132).print(shown)
    lacking = [line for name, row in found.items() for line in missed(name, row)]
    for line in lacking:
        print(f"{'error' if check else 'missed'}: {line}", file=sys.stderr)
    if check and lacking:
        sys.exit(1)


if __name__ == "__main__":
    typer.run(main)
