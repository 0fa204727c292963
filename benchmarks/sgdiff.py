"""What SGDiff's sampling costs over the bare U-Net: 200 DDIM steps of a batch of 16 beside as many forwards of diffusers' class.

- `sampling`: encoding 16 graphs, their tokens, the start and the noise of every step from 16 seeds, 200 steps of DDIM with η = 1.
- `bare`: 200 forwards of a `UNet2DConditionModel` of the same sizes with the same inputs, and nothing else.

The two are timed in pairs, in alternating order; the figure is the median of bare / sampling over the pairs, 1 being free. On a CPU
these are seconds of the process on one thread, which other processes of the machine do not lengthen; on a GPU of the clock. The
published U-Net (base 256, latents of 32 × 32) takes 22.9 TFLOP per image, hours of a small CPU: the default here is base 32 and
latents of 8 × 8 in the same architecture, at which everything beside the U-Net weighs most. `--base 256 --resolution 256` is the
published size. Weights are random.

Run `python -m benchmarks.sgdiff`; `--check` fails below 0.8 of the bare speed.
"""

import statistics
import sys
import time
from pathlib import Path
from typing import Annotated

import torch
import typer

from sgpipe.graph_encoder.cgip import Cgip, CgipConfig
from sgpipe.graph_encoder.vocabulary import Vocabulary
from sgpipe.graphs.scene_graph import SceneGraph
from sgpipe.runs.atomic import DIGITS, write_json
from sgpipe.runs.processes import pick_device
from sgpipe.sgdiff.model import SgDiff
from sgpipe.sgdiff.networks import FirstStageConfig, NoisePredictor, PredictorConfig, first_stage
from sgpipe.sgdiff.schedule import DdimTables

SPEED = 0.8
VOCABULARY = Vocabulary.of(["dog", "cat", "mat", "tree"], ["left of", "on", "near"])
GRAPH = SceneGraph(("dog", "cat", "mat", "tree"), ((0, "left of", 1), (1, "on", 2), (3, "near", 0)))


def build(base: int, context: int, resolution: int, device: torch.device) -> SgDiff:
    """SGDiff of random weights, the U-Net's and the encoder's in the published proportions."""
    torch.manual_seed(0)
    encoder = Cgip(CgipConfig(len(VOCABULARY.objects), len(VOCABULARY.predicates), width=context, embed=context))
    stage = first_stage(FirstStageConfig(base=32, codes=64))
    predictor = NoisePredictor(PredictorConfig(base=base, context=context))
    return SgDiff(encoder, VOCABULARY, predictor, stage, resolution).to(device)


@torch.no_grad()
def bare(model: SgDiff, batch: int, steps: int) -> None:
    """As many forwards of the U-Net as DDIM takes."""
    timesteps = DdimTables.of(steps, 1.0).timesteps.flip(0).to(model.device)
    latents = torch.randn(batch, *model.latent_shape, device=model.device)
    context = torch.randn(batch, 16, model.predictor.config.context, device=model.device)
    for t in timesteps:
        model.predictor.unet(latents, t.expand(batch), encoder_hidden_states=context, return_dict=False)


def seconds(model: SgDiff, batch: int, steps: int, sampling: bool) -> float:
    """Seconds of one run: of the process on a CPU, of the clock on a GPU."""
    clock = time.perf_counter if model.device.type == "cuda" else time.process_time
    begun = clock()
    if sampling:
        model.latents([GRAPH] * batch, range(batch), steps, 1.0)
    else:
        bare(model, batch, steps)
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - begun


def main(
    base: Annotated[int, typer.Option(help="base width of the U-Net, a multiple of 32")] = 32,
    context: Annotated[int, typer.Option(min=1, help="width of cross-attention and of the graph encoder")] = 64,
    resolution: Annotated[int, typer.Option(help="side of an image, a multiple of 32; latents have an eighth of it")] = 64,
    batch: Annotated[int, typer.Option(min=1, help="images at a time")] = 16,
    steps: Annotated[int, typer.Option(help="DDIM steps")] = 200,
    pairs: Annotated[int, typer.Option(min=1, help="pairs of runs")] = 5,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    check: Annotated[bool, typer.Option("--check", help="fail where the bar is missed")] = False,
    out: Annotated[Path, typer.Option(help="figures, as JSON")] = Path("metrics/sgdiff_cost.json"),
) -> None:
    """Time both and write the figures."""
    torch.set_num_threads(1)
    model = build(base, context, resolution, pick_device(device, 0, "--device"))
    for sampling in (True, False):
        seconds(model, batch, min(steps, 10), sampling)
    taken: dict[bool, list[float]] = {True: [], False: []}
    for pair in range(pairs):
        for sampling in (pair % 2 == 0, pair % 2 == 1):
            taken[sampling].append(seconds(model, batch, steps, sampling))
        print(f"pair {pair + 1} of {pairs}: {taken[True][-1]:.2f} s, bare {taken[False][-1]:.2f} s", file=sys.stderr)
    ratios = [alone / whole for whole, alone in zip(taken[True], taken[False], strict=True)]
    found = {
        "base": base,
        "context": context,
        "latent_side": model.latent_shape[1],
        "parameters": sum(weight.numel() for weight in model.predictor.parameters()),
        "batch": batch,
        "steps": steps,
        "pairs": pairs,
        "sampling_seconds": statistics.median(taken[True]),
        "bare_seconds": statistics.median(taken[False]),
        "relative_speed": statistics.median(ratios),
        "relative_speed_lowest": min(ratios),
        "relative_speed_highest": max(ratios),
        "device": model.device.type,
        "threads": torch.get_num_threads(),
    }
    print(
        f"{steps} DDIM steps of {batch} images: {found['sampling_seconds']:.2f} s, the bare U-Net {found['bare_seconds']:.2f} s; "
        f"× {found['relative_speed']:.3f} of its speed ({found['relative_speed_lowest']:.3f} to "
        f"{found['relative_speed_highest']:.3f} over {pairs} pairs), bar {SPEED}"
    )
    write_json(found, out, DIGITS)
    if check and found["relative_speed"] < SPEED:
        print(f"error: below {SPEED} of the bare U-Net's speed", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    typer.run(main)
