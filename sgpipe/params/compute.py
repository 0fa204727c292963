"""How computations are run; nothing here changes what is computed, so no stage reruns when it changes."""

from typing import Annotated, Literal

from msgspec import Meta, Struct


class Compute(Struct, frozen=True, forbid_unknown_fields=True):
    """Section `compute`: device, threads and processes."""

    device: Annotated[
        Literal["auto", "cpu", "cuda", "mps"],
        Meta(description="where models run; auto takes a GPU if there is one"),
    ] = "auto"
    threads: Annotated[
        int, Meta(ge=0, description="intra-op threads per process; 0 leaves the library's default")
    ] = 0
    processes: Annotated[int, Meta(ge=1, description="processes under `accelerate launch`")] = 1
