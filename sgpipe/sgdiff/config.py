"""The section of params.yaml that this package reads: which generator arms of kind `sgdiff` sample with, and how."""

from typing import Annotated

from msgspec import Meta, Struct

from sgpipe.sgdiff.steps import STEPS


class Twin(Struct, frozen=True, forbid_unknown_fields=True):
    """SGDiff's noise predictor trained here, on the latents of `cache_latents` and the graph encoder of stage `graph_encoder`;
    what is left out is as in the official training.
    """

    base: Annotated[int, Meta(ge=32, multiple_of=32, description="base width of the U-Net")] = 256
    steps: Annotated[int, Meta(ge=1, description="steps of AdamW")] = 700_000
    batch_size: Annotated[int, Meta(ge=1, description="crops per step")] = 16
    learning_rate: Annotated[float, Meta(gt=0.0, description="constant learning rate")] = 1.6e-5
    weight_decay: Annotated[float, Meta(ge=0.0, description="of all weights")] = 0.01
    ema_decay: Annotated[float, Meta(ge=0.0, lt=1.0, description="of the averaged weights, which are sampled with")] = 0.9999
    save_every: Annotated[int, Meta(ge=1, description="steps between two checkpoints")] = 500


class SgDiffParams(Struct, frozen=True, forbid_unknown_fields=True):
    """Section `sgdiff`. SGDiff's own generator, which arms of kind `sgdiff` sample with; the defaults are the official sampler."""

    checkpoint: Annotated[
        Annotated[str, Meta(min_length=1)] | None,
        Meta(description="folder that `sgpipe sgdiff import` or stage `train_sgdiff` wrote; null where no arm is of this kind"),
    ] = None
    steps: Annotated[int, Meta(description="DDIM steps, a divisor of 1000 up to 500")] = 200
    eta: Annotated[float, Meta(ge=0.0, le=1.0, description="η of DDIM: share of the noise of DDPM that a step adds")] = 1.0

    twins: Annotated[
        tuple[Annotated[int, Meta(ge=0, lt=1 << 31)], ...],
        Meta(description="seeds with which twins are trained, each in outputs/sgdiff/<seed>; none where a checkpoint is imported"),
    ] = ()
    twin: Twin = Twin()

    def __post_init__(self) -> None:
        if self.steps not in STEPS:
            raise ValueError(f"steps: got {self.steps}; valid: {', '.join(map(str, STEPS))}")
