"""Which parts of the model sit where and when, on a GPU of a given size.

No phase holds the text encoders and the transformer at once: prompts and latents are cached first. For each
phase the ways are tried from the one that changes least to the one that changes most, and the first that fits
is taken.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from rich.table import Table

from sgpipe.doctor.memory import CONTEXT_BYTES, GIB, TRAINED_BYTES, USABLE, Need

GPU_SIZES = (16.0, 24.0, 48.0, 80.0)


@dataclass(frozen=True)
class Way:
    """One way to run a phase: what is done to make it fit, and the bytes that it takes beside the
    process itself.
    """

    how: str
    bytes: float


@dataclass(frozen=True)
class Choice:
    """The way taken for a phase, and whether it fits."""

    phase: str
    way: Way
    fits: bool


def ways(need: Need) -> dict[str, list[Way]]:
    """For each phase, the ways to run it in the order in which they are to be tried.

    Their names are values of `compute.offload` and `backbone.quantisation`, and `lora.checkpointing`.
    """
    dtype = need.dtype
    transformer, vae = need.sizes["transformer"], need.sizes["vae"].bytes(dtype)
    encoders = [need.sizes["text_encoder"], need.sizes["text_encoder_2"]]
    word = 4.0 if dtype == "float32" else 2.0
    plain, unpacked = transformer.bytes(dtype), word * transformer.largest_linear
    drawn = vae + max(need.forward, need.decode_images)
    beside = vae + need.lora * TRAINED_BYTES

    def base(kind: str) -> float:
        return transformer.bytes(kind) + unpacked

    return {
        "cache prompts": [
            Way(dtype, sum(e.bytes(dtype) for e in encoders) + need.encode_prompts),
            Way("offload: model", max(e.bytes(dtype) for e in encoders) + need.encode_prompts),
            Way("offload: sequential", max(e.largest for e in encoders) * word + need.encode_prompts),
        ],
        "cache latents": [Way(dtype, vae + need.encode_images)],
        "saliency, sampling": [
            Way(dtype, plain + drawn),
            Way("offload: model", max(plain + need.forward, vae + need.decode_images)),
            Way("int8", base("int8") + drawn),
            Way("nf4", base("nf4") + drawn),
            Way("offload: sequential", transformer.largest * word + drawn),
        ],
        "LoRA training": [
            Way(dtype, plain + beside + need.train),
            Way("checkpointing", plain + beside + need.train_checkpointed),
            Way("int8 base, checkpointing", base("int8") + beside + need.train_checkpointed),
            Way("nf4 base, checkpointing", base("nf4") + beside + need.train_checkpointed),
        ],
    }


def choose(need: Need, room: float) -> list[Choice]:
    """For each phase, the first way that takes at most `room` bytes; where none does, the smallest one."""
    choices = []
    for phase, options in ways(need).items():
        fitting = [way for way in options if way.bytes <= room]
        choices.append(
            Choice(phase, fitting[0] if fitting else min(options, key=lambda w: w.bytes), bool(fitting))
        )
    return choices


def gpu_room(gib: float) -> float:
    """Bytes that a process can use on a GPU of `gib` GiB, after the CUDA context and what fragmentation
    costs.
    """
    return gib * GIB * USABLE - CONTEXT_BYTES


def plan_table(need: Need, sizes: Iterable[float]) -> Table:
    """The plan for several GPU sizes: rows are phases, cells the way taken and the GiB needed with the
    CUDA context.
    """
    plans = {size: choose(need, gpu_room(size)) for size in sizes}
    table = Table(
        "phase",
        *(f"{size:g} GiB" for size in plans),
        title="memory plan (weights + dry run on the meta device)",
    )
    for row in zip(*plans.values(), strict=True):
        cells = []
        for choice in row:
            total = (choice.way.bytes + CONTEXT_BYTES) / GIB
            cells.append(
                f"{choice.way.how}\n{total:.1f} GiB"
                if choice.fits
                else f"[bold red]does not fit[/]\n{total:.1f} GiB"
            )
        table.add_row(row[0].phase, *cells)
    return table
