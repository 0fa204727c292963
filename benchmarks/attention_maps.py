"""What maps of all 19 double-stream blocks cost over plain generation: time, FLOPs, memory; and maps of the single-stream ones.

- `time`: medians of paired 4-step generations with and without maps, on a FLUX-shaped model of hidden size 512 on the CPU.
- `flops` and `memory`: FLUX.1-schnell's own configuration at 512 px with 4 concepts, on the meta device (no weights).
- `flops_single`: the same with maps of the 38 single-stream blocks beside; `time_single` (`--single-maps`): its time. No bars.
- `storage`: a file of the predecessor's size (700 maps of each of 24 classes, 3 concepts at 32²), read from the page cache.
- `cuda`: the same configuration with random bfloat16 weights, by batch size; where no GPU is found it is reported as not run.

Run `python -m benchmarks.attention_maps`; `--check` fails above 1.08 × the time, 0.2 % more FLOPs or 1 MiB per prompt, 650 MB for
three groups, or reading below 1 GB/s.
"""

import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import pyarrow as pa
import torch
import typer
from diffusers import FluxTransformer2DModel
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sgpipe.attention_maps.files import MapFile, map_table, write_maps
from sgpipe.attention_maps.options import MapOptions
from sgpipe.attention_maps.stream import concept_stream
from sgpipe.datasets.tables import MAP_ITEMS
from sgpipe.relations.predicates import PREDICATES
from sgpipe.runs.atomic import DIGITS, write_json

TIME_RATIO, FLOP_SHARE, MAP_BYTES = 1.08, 0.002, 1 << 20
SET_BYTES, READ_RATE = 650e6, 1e9
DOUBLE = {"early": "0..6", "middle": "7..12", "late": "13..18"}
GROUPS = MapOptions(DOUBLE)
BOTH = MapOptions({**DOUBLE, "single": {"single_blocks": "all"}})


@dataclass(frozen=True)
class Shape:
    """A FLUX of `heads` heads of 128 and what one sample brings: `side`² patches, `text` tokens, `concepts` concepts."""

    heads: int
    width_t5: int
    width_pooled: int
    side: int
    text: int
    concepts: int = 4
    double: int = 19
    single: int = 38

    def model(self, device: str, dtype: torch.dtype) -> FluxTransformer2DModel:
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            with torch.device(device):
                return FluxTransformer2DModel(
                    num_layers=self.double,
                    num_single_layers=self.single,
                    num_attention_heads=self.heads,
                    joint_attention_dim=self.width_t5,
                    pooled_projection_dim=self.width_pooled,
                ).eval()
        finally:
            torch.set_default_dtype(before)

    def batch(self, size: int, device: str, dtype: torch.dtype) -> tuple[dict[str, Tensor], Tensor]:
        """Random arguments of a forward, and the concepts."""

        def random(*shape: int) -> Tensor:
            return torch.randn(shape, device=device, dtype=dtype)

        ids = torch.zeros(self.side, self.side, 3)
        ids[..., 1], ids[..., 2] = torch.arange(self.side)[:, None], torch.arange(self.side)
        arguments = {
            "hidden_states": random(size, self.side**2, 64),
            "encoder_hidden_states": random(size, self.text, self.width_t5),
            "pooled_projections": random(size, self.width_pooled),
            "img_ids": ids.flatten(0, 1).to(device, dtype),
            "txt_ids": torch.zeros(self.text, 3, device=device, dtype=dtype),
        }
        return arguments, random(size, self.concepts, self.width_t5)


MANY = 24
"""Concepts of a large graph."""
SCHNELL = Shape(heads=24, width_t5=4096, width_pooled=768, side=32, text=256)


@torch.no_grad()
def generate(
    model: FluxTransformer2DModel,
    arguments: dict[str, Tensor],
    concepts: Tensor | None,
    grid: int,
    steps: int,
    options: MapOptions = GROUPS,
) -> None:
    """Euler steps from t = 1 to 0, with maps where there are concepts."""
    latents = arguments["hidden_states"]
    with nullcontext() if concepts is None else concept_stream(model, concepts, (grid, grid), options) as stream:
        for step in range(steps):
            t = latents.new_full((len(latents),), 1 - step / steps)
            velocity = model(**arguments | {"hidden_states": latents, "timestep": t}).sample
            latents = latents - velocity / steps
        if stream is not None:
            stream.maps()


def paired(
    plain: Callable[[], None], maps: Callable[[], None], pairs: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Median seconds of both and of their ratio, over pairs run one after the other in alternating order, by a clock."""
    seconds: dict[Callable[[], None], list[float]] = {plain: [], maps: []}
    for run in (plain, maps):
        run()
    for pair in range(pairs):
        for run in (plain, maps) if pair % 2 else (maps, plain):
            start = clock()
            run()
            seconds[run].append(clock() - start)
    ratios = [b / a for a, b in zip(seconds[plain], seconds[maps], strict=True)]
    return {
        "plain_seconds": statistics.median(seconds[plain]),
        "maps_seconds": statistics.median(seconds[maps]),
        "ratio": statistics.median(ratios),
        "ratio_lowest": min(ratios),
        "ratio_highest": max(ratios),
    }


def measure_time(
    shape: Shape, device: str, dtype: torch.dtype, batches: tuple[int, ...], steps: int, pairs: int, options: MapOptions = GROUPS
) -> dict[str, Any]:
    """Paired generations by batch size, with random weights: seconds, images/s and, on a GPU, the peak of allocated bytes."""
    torch.manual_seed(0)
    model = shape.model(device, dtype)
    return {f"batch_{size}": _measure_batch(model, shape, device, dtype, size, steps, pairs, options) for size in batches}


def _measure_batch(
    model: FluxTransformer2DModel,
    shape: Shape,
    device: str,
    dtype: torch.dtype,
    size: int,
    steps: int,
    pairs: int,
    options: MapOptions,
) -> dict[str, float]:
    arguments, concepts = shape.batch(size, device, dtype)
    peak: dict[str, int] = {}

    def run(name: str) -> None:
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        generate(model, arguments, concepts if name == "maps" else None, shape.side, steps, options)
        if device == "cuda":
            torch.cuda.synchronize()
            peak[f"{name}_peak_bytes"] = torch.cuda.max_memory_allocated()

    found = paired(lambda: run("plain"), lambda: run("maps"), pairs)
    rates = {f"{name}_images_per_second": size / found[f"{name}_seconds"] for name in ("plain", "maps")}
    return {**found, **rates, **peak}


def measure_flops(shape: Shape, options: MapOptions = GROUPS) -> dict[str, float]:
    """TFLOP of one forward of one prompt, matrix products and attention, counted on the meta device."""
    model = shape.model("meta", torch.bfloat16)
    arguments, concepts = shape.batch(1, "meta", torch.bfloat16)
    counted = []
    for rows in (None, concepts):
        with FlopCounterMode(display=False) as counter:
            generate(model, arguments, rows, shape.side, 1, options)
        counted.append(counter.get_total_flops())
    return {"plain_tflop": counted[0] / 1e12, "maps_tflop": counted[1] / 1e12, "more": counted[1] / counted[0] - 1}


def _new_bytes() -> int:
    """Bytes of all tensors that Python can reach, but for those that `gc.freeze` has set aside."""
    gc.collect()
    return sum(value.nbytes for value in gc.get_objects() if issubclass(type(value), Tensor))


def measure_memory(shape: Shape, batch: int) -> dict[str, int]:
    """Bytes per prompt that are held because of the maps, where they are most: after the last double block of the second forward.

    All that is alive there with maps, less what is alive without: sums of this forward and of the one before, conditioning.
    """
    model = shape.model("meta", torch.bfloat16)
    arguments, concepts = shape.batch(batch, "meta", torch.bfloat16)
    live: list[int] = []
    handle = model.single_transformer_blocks[0].register_forward_pre_hook(lambda *_: live.append(_new_bytes()), with_kwargs=True)
    gc.collect()
    gc.freeze()
    try:
        for rows in (None, concepts):
            generate(model, arguments, rows, shape.side, steps=2)
    finally:
        gc.unfreeze()
        handle.remove()
    return {
        "bytes_per_prompt": (live[3] - live[1]) // batch,
        "groups": len(GROUPS.groups),
        "concepts": shape.concepts,
        "side": shape.side,
    }


def measure_storage(per_class: int, reads: int = 5) -> dict[str, float]:
    """Bytes of a set of three groups, and the median rate of reading one group's saliency maps, bytes/s."""
    shape, shard = (3, 32, 32), 256
    count = per_class * len(PREDICATES)
    draw = torch.Generator().manual_seed(0)

    def tables() -> Iterator[pa.Table]:
        for start in range(0, count, shard):
            size = min(shard, count - start)
            rows = [
                {"triple_id": f"{i}-1", "predicate": PREDICATES[i % 24], "condition": "relational"}
                for i in range(start, start + size)
            ]
            maps = torch.randn(2, size, *shape, generator=draw)
            yield map_table(pa.Table.from_pylist(rows, schema=MAP_ITEMS), *maps)

    with TemporaryDirectory() as folder:
        path = Path(folder) / "group.parquet"
        write_maps(tables(), path, {"shape": shape})
        seconds = []
        for _ in range(reads):
            start = time.perf_counter()
            maps = MapFile(path).read("saliency")
            seconds.append(time.perf_counter() - start)
        return {
            "set_bytes": 3 * path.stat().st_size,
            "read_bytes_per_second": maps.nbytes / statistics.median(seconds),
            "maps": count,
        }


def main(
    heads: Annotated[int, typer.Option(min=1, help="heads of 128 of the model timed on the CPU")] = 4,
    single: Annotated[int, typer.Option(min=1, help="its single-stream blocks")] = 38,
    pairs: Annotated[int, typer.Option(min=1, help="pairs of generations timed")] = 9,
    steps: Annotated[int, typer.Option(min=1, help="steps of a generation")] = 4,
    per_class: Annotated[int, typer.Option(min=1, help="maps of each class in the file that is read")] = 700,
    single_maps: Annotated[bool, typer.Option(help="time maps of the single-stream blocks on the CPU, too")] = False,
    cuda: Annotated[bool, typer.Option(help="measure on the GPU, where there is one")] = True,
    out: Annotated[Path, typer.Option(help="metrics file")] = Path("metrics/attention_maps.json"),
    check: Annotated[bool, typer.Option("--check", help="fail if a bar is missed")] = False,
) -> None:
    """Measure, print, write."""
    small = Shape(heads=heads, width_t5=512, width_pooled=128, side=16, text=64, single=single)
    flops, memory = measure_flops(SCHNELL), measure_memory(SCHNELL, batch=1)
    print(
        f"FLUX.1-schnell at 512 px, {SCHNELL.concepts} concepts: {flops['plain_tflop']:.2f} TFLOP a step, "
        f"{flops['more']:+.3%} with maps; {memory['bytes_per_prompt'] / 1024:,.0f} KiB per prompt for {memory['groups']} groups"
    )
    both = {count: measure_flops(replace(SCHNELL, concepts=count), BOTH) for count in (SCHNELL.concepts, MANY)}
    many = measure_flops(replace(SCHNELL, concepts=MANY))
    print(
        f"with maps of its {SCHNELL.single} single-stream blocks beside {both[SCHNELL.concepts]['more']:+.3%}; of {MANY} concepts "
        f"{many['more']:+.3%} without, {both[MANY]['more']:+.3%} with them"
    )
    timed = measure_time(small, "cpu", torch.float32, (1,), steps, pairs)["batch_1"]
    layout = {
        "hidden": 128 * heads,
        "double_blocks": small.double,
        "single_blocks": single,
        "image_tokens": small.side**2,
        "text_tokens": small.text,
        "threads": torch.get_num_threads(),
        "pairs": pairs,
        "steps": steps,
    }
    print(
        f"hidden {128 * heads}, {small.double}+{single} blocks, {small.side**2}+{small.text} tokens, "
        f"{torch.get_num_threads()} threads: {timed['plain_seconds']:.2f} s plain, {timed['maps_seconds']:.2f} s with maps, "
        f"ratio {timed['ratio']:.3f} ({timed['ratio_lowest']:.3f} to {timed['ratio_highest']:.3f} over {pairs} pairs)"
    )
    storage = measure_storage(per_class)
    print(
        f"{3 * storage['maps']:,.0f} pairs of maps: {storage['set_bytes'] / 1e6:.0f} MB; one group's saliency read at "
        f"{storage['read_bytes_per_second'] / 1e9:.1f} GB/s"
    )
    metrics: dict[str, Any] = {
        "time": {**timed, **layout}, "flops": flops, "memory": memory, "storage": storage,
        "flops_single": {f"concepts_{count}": found for count, found in both.items()},
    }  # fmt: skip
    if single_maps:
        metrics["time_single"] = measure_time(small, "cpu", torch.float32, (1,), steps, pairs, BOTH)["batch_1"]
        print(f"with maps of its single-stream blocks beside: ratio {metrics['time_single']['ratio']:.3f}")
    if cuda and torch.cuda.is_available():
        gpu = measure_time(SCHNELL, "cuda", torch.bfloat16, (1, 4, 16), steps, pairs)
        metrics["cuda"] = {"device": torch.cuda.get_device_name(), "pairs": pairs, "steps": steps, **gpu}
        for size, each in gpu.items():
            print(
                f"{metrics['cuda']['device']}, {size}: {each['plain_images_per_second']:.2f} images/s plain, "
                f"{each['maps_images_per_second']:.2f} with maps, ratio {each['ratio']:.3f}, "
                f"peak {each['plain_peak_bytes'] / 2**30:.2f} and {each['maps_peak_bytes'] / 2**30:.2f} GiB"
            )
    else:
        print("GPU: not run" + (", none was found" if cuda else ""))
        metrics["cuda"] = None
    write_json(metrics, out, DIGITS)
    if check and (
        timed["ratio"] > TIME_RATIO
        or flops["more"] > FLOP_SHARE
        or memory["bytes_per_prompt"] > MAP_BYTES
        or storage["set_bytes"] > SET_BYTES
        or storage["read_bytes_per_second"] < READ_RATE
    ):
        print(
            f"error: the bars are {TIME_RATIO} × the time, {FLOP_SHARE:.1%} more FLOPs, {MAP_BYTES >> 10} KiB per prompt, "
            f"{SET_BYTES / 1e6:.0f} MB of maps and {READ_RATE / 1e9:.0f} GB/s",
            file=sys.stderr,
        )
        sys.exit(1)


if __name__ == "__main__":
    typer.run(main)
