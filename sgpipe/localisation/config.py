"""The section of params.yaml that this package reads: which blocks and rows are intervened on, and in which samples."""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from sgpipe.backbones.config import each_once
from sgpipe.params.blocks import LayerGroup

Rows = Literal["image", "text", "prompt", "graph", "subject", "relation", "object", "pooled"]
Contrast = Literal["denoising", "noising", "control"]
Ablated = Literal["skip", "text", "graph", "mean"]


class Localise(Struct, frozen=True, forbid_unknown_fields=True):
    """Section `localise`. Which blocks the generator uses for a relation: activations of one run are copied into another, and
    blocks are ablated. The batch size is part of the result: another one may round differently.
    """

    adapter: Annotated[
        str | None,
        Meta(
            description="folder of the adapter whose g⁺ and g⁻ are the two runs; `presets/unused/adapter` takes the base, told the "
            "relation and its inverse in words"
        ),
    ] = None
    pairs: Annotated[
        Annotated[int, Meta(ge=2)] | None,
        Meta(description="val triples whose negative swaps the roles, as many of each class as there are; null takes all"),
    ] = None
    seeds: Annotated[
        tuple[Annotated[int, Meta(ge=0, lt=1 << 31)], ...], Meta(min_length=1, description="noises of each triple")
    ] = (0,)
    blocks: Annotated[
        LayerGroup, Meta(description="blocks that are patched and ablated, each alone: double-stream ones, or some of each stream")
    ] = LayerGroup.parse("all")
    rows: Annotated[
        tuple[Rows, ...],
        Meta(
            min_length=1,
            description="rows that are patched: the image's, all of the text stream, of these the prompt's, the graph tokens, or "
            "those of a word; pooled: no rows, but the pooled vector that modulates the blocks after this one",
        ),
    ] = ("image", "text")
    contrasts: Annotated[
        tuple[Contrast, ...],
        Meta(
            description="what is patched into what: g⁺ into g⁻ (denoising), g⁻ into g⁺ (noising), the g⁺ of another triple of the "
            "same relation into g⁻ (control)"
        ),
    ] = ("denoising", "noising", "control")
    ablations: Annotated[
        tuple[Ablated, ...],
        Meta(
            description="of each block and of each of maps.groups: skip it, zero the text or the graph tokens that it reads, or "
            "put the mean over samples in place of what it adds"
        ),
    ] = ("skip", "text", "graph", "mean")
    heads: Annotated[
        int,
        Meta(ge=0, description="attention heads that are patched, those of the largest attribution by gradient; 0 looks at none"),
    ] = 20
    steps: Annotated[int, Meta(ge=1, description="Euler steps from noise to image")] = 4
    guidance: Annotated[
        Annotated[float, Meta(ge=0)] | None,
        Meta(description="scale, as `evaluate.guidance`; the forward under the empty prompt is left as it is"),
    ] = None
    batch_size: Annotated[int, Meta(ge=1, description="samples per forward of the transformer")] = 64
    shard_size: Annotated[
        int, Meta(ge=1, description="samples per shard, the unit of work and of resuming; the mean of an ablation is over these")
    ] = 8

    def __post_init__(self) -> None:
        each_once(seeds=self.seeds, rows=self.rows, contrasts=self.contrasts, ablations=self.ablations)
