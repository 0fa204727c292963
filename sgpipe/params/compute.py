"""How computations are run; nothing here changes what is computed, so no stage reruns when it changes."""

from typing import Annotated, Literal

from msgspec import Meta, Struct


class Compute(Struct, frozen=True, forbid_unknown_fields=True):
    """Section `compute`."""

    device: Annotated[
        Literal["auto", "cpu", "cuda", "mps"],
        Meta(description="where models run; auto takes a GPU if there is one"),
    ] = "auto"
