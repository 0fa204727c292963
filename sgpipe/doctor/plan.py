"""Which parts of the model sit where and when, on a GPU of a given size.

No phase holds the text encoders and the transformer at once: prompts and latents are cached first. For each phase the ways are
tried from the one that changes least to the one that changes most, and the first that fits is taken.
"""

from collections.abc import Iterable
from typing import Final, NamedTuple

from rich.table import Table

from sgpipe.doctor.memory import GIB, Need

CONTEXT_BYTES: Final = 0.6 * GIB
"""CUDA context and library workspaces of one process."""
USABLE: Final = 0.97
"""Share of a GPU's nominal memory that an allocator can fill before it fragments."""
TRAINED_BYTES: Final = 16
"""Bytes per trained parameter: float32 value, gradient and two AdamW moments."""
GPU_SIZES = (16.0, 24.0, 48.0, 80.0)


class Choice(NamedTuple):
    """How a phase is run, the bytes that it takes so beside the process itself, and whether they fit."""

    phase: str
    how: str
    bytes: float
    fits: bool


def ways(need: Need) -> dict[str, dict[str, float]]:
    """For each phase, the ways to run it in the order in which they are to be tried, and the bytes that each takes.

    Their names are values of `compute.offload` and `backbone.quantisation`, and `train.gradient_checkpointing`.
    """
    dtype = need.dtype
    transformer, vae = need.sizes["transformer"], need.sizes["vae"].bytes(dtype)
    encoders = [size for name, size in need.sizes.items() if name not in ("transformer", "vae")]
    word = 4.0 if dtype == "float32" else 2.0
    plain, unpacked = transformer.bytes(dtype), word * transformer.largest_linear
    int8, nf4 = (transformer.bytes(kind) + unpacked for kind in ("int8", "nf4"))
    sampled = vae + max(need.forward, need.decode_images)
    trained = vae + need.lora * TRAINED_BYTES + need.train_checkpointed
    return {
        "cache prompts": {
            dtype: need.encode_prompts + sum(e.bytes(dtype) for e in encoders),
            "offload: model": need.encode_prompts + max(e.bytes(dtype) for e in encoders),
            "offload: sequential": need.encode_prompts + max(e.largest for e in encoders) * word,
        },
        "cache latents": {dtype: vae + need.encode_images},
        "saliency, sampling": {
            dtype: plain + sampled,
            "offload: model": max(plain + need.forward, vae + need.decode_images),
            "int8": int8 + sampled,
            "nf4": nf4 + sampled,
            "offload: sequential": transformer.largest * word + sampled,
        },
        "LoRA training": {
            dtype: plain + vae + need.lora * TRAINED_BYTES + need.train,
            "checkpointing": plain + trained,
            "int8 base, checkpointing": int8 + trained,
            "nf4 base, checkpointing": nf4 + trained,
        },
    }


def choose(need: Need, room: float) -> list[Choice]:
    """For each phase, the first way that takes at most `room` bytes; where none does, the smallest one."""
    choices = []
    for phase, options in ways(need).items():
        least = min(options, key=lambda how: options[how])
        how = next((each for each, size in options.items() if size <= room), least)
        choices.append(Choice(phase, how, options[how], options[how] <= room))
    return choices


def gpu_room(gib: float) -> float:
    """Bytes that a process can use on a GPU of `gib` GiB, after the CUDA context and what fragmentation costs."""
    return gib * GIB * USABLE - CONTEXT_BYTES


def plan_table(need: Need, sizes: Iterable[float]) -> Table:
    """The plan for several GPU sizes: rows are phases, cells the way taken and the GiB needed with the CUDA context."""
    plans = {size: choose(need, gpu_room(size)) for size in sizes}
    title = "memory plan (weights + dry run on the meta device)"
    table = Table("phase", *(f"{size:g} GiB" for size in plans), title=title)
    for row in zip(*plans.values(), strict=True):
        cells = [
            f"{each.how if each.fits else '[bold red]does not fit[/]'}\n{(each.bytes + CONTEXT_BYTES) / GIB:.1f} GiB"
            for each in row
        ]
        table.add_row(row[0].phase, *cells)
    return table
