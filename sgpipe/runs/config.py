"""The sections of params.yaml that this package reads: how computations are run, and where they are recorded."""

from typing import Annotated, Literal

from msgspec import Meta, Struct


class Compute(Struct, frozen=True, forbid_unknown_fields=True):
    """Section `compute`. How computations are run; nothing here changes what is computed, so no stage reruns when it changes."""

    device: Annotated[
        Literal["auto", "cpu", "cuda", "mps"], Meta(description="where models run; auto takes a GPU if there is one")
    ] = "auto"
    offload: Annotated[
        Literal["none", "model", "sequential"],
        Meta(description="what waits in main memory while it is not used: nothing, whole models, or single layers (slow)"),
    ] = "none"
    launch: Annotated[
        str | None,
        Meta(
            description="command that starts a stage's processes, e.g. `torchrun --nproc-per-node 4` or "
            "`accelerate launch --num_processes 4`; null runs one process"
        ),
    ] = None
    deterministic: Annotated[
        bool,
        Meta(
            description="the same bits in every run on a GPU, too, for some of its speed; an operation that cannot give them raises"
        ),
    ] = False
    threads: Annotated[int, Meta(ge=0, description="CPU threads per process; 0 leaves them to PyTorch")] = 0


class Tracking(Struct, frozen=True, forbid_unknown_fields=True):
    """Section `tracking`. Where runs are recorded; a view of the results, so no stage reruns when it changes. MLflow."""

    enabled: Annotated[bool, Meta(description="record stages in MLflow")] = True
    experiment: Annotated[str, Meta(min_length=1, description="name of the MLflow experiment")] = "sgpipe"
