"""The sections of params.yaml that this package reads: what is averaged into a map, and which maps are made."""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from sgpipe.backbones.config import Condition, each_once
from sgpipe.params.blocks import LayerGroup

Normalisation = Literal["none", "concepts", "patches"]
Pooling = Literal["first", "mean"]
Variant = Literal["ours", "official_sd3"]

Times = tuple[Annotated[float, Meta(gt=0, le=1)], ...]


class Maps(Struct, frozen=True, forbid_unknown_fields=True):
    """Section `maps`. Maps of the concepts: over which blocks they are averaged, and of which images they are made. What all
    maps share. The batch size is part of the result: another one may round differently.
    """

    groups: Annotated[
        dict[str, LayerGroup],
        Meta(
            min_length=1, description="layer groups: name to double-stream blocks, or to those of each stream; groups may overlap"
        ),
    ]
    normalisation: Annotated[
        Normalisation, Meta(description="of saliency scores per block and step: a softmax over concepts or patches, or none")
    ] = "concepts"
    concept_tokens: Annotated[
        Pooling, Meta(description="a concept of several words by its first token, as published, or by their mean")
    ] = "first"
    variant: Annotated[
        Variant, Meta(description="definition of the maps: this project's, or for SD3 that of ConceptAttention's own port to it")
    ] = "ours"
    side: Annotated[
        Annotated[int, Meta(ge=2)] | None, Meta(description="side of the stored maps; null keeps the model's own grid")
    ] = None
    batch_size: Annotated[int, Meta(ge=1, description="images per forward of the transformer")] = 16
    shard_size: Annotated[int, Meta(ge=1, description="images per row group, the unit of work and of resuming")] = 256


class Saliency(Struct, frozen=True, forbid_unknown_fields=True):
    """Section `saliency`. Maps of the concepts: over which blocks they are averaged, and of which images they are made. Maps
    averaged over the sampling of an image from the triple's prompt.
    """

    condition: Annotated[Condition, Meta(description="prompt: with its relation, without, with a wrong one")] = "relational"
    steps: Annotated[int, Meta(ge=1, description="Euler steps from noise to image")] = 4
    counted: Annotated[
        Annotated[tuple[Annotated[int, Meta(ge=0)], ...], Meta(min_length=1)] | None,
        Meta(description="steps that count into the mean, from 0; null counts all"),
    ] = None
    guidance: Annotated[
        Annotated[float, Meta(ge=0)] | None,
        Meta(
            description="scale: an input of a guidance-distilled transformer, elsewhere classifier-free guidance, whose empty "
            "prompt makes no maps; null or 1 is none"
        ),
    ] = None
    images: Annotated[int, Meta(ge=1, description="images per class that are kept for the contact sheets")] = 4
    seed: Annotated[int, Meta(ge=0, lt=1 << 31, description="seed of the starting noise")] = 0

    def __post_init__(self) -> None:
        if self.counted is not None and max(self.counted) >= self.steps:
            raise ValueError(f"counted: got {list(self.counted)}; valid: steps 0..{self.steps - 1}, as steps is {self.steps}")


class NoisedMaps(Struct, frozen=True, forbid_unknown_fields=True):
    """Section `saliency_noised`. Maps of the concepts: over which blocks they are averaged, and of which images they are made.
    Maps of real images, noised to given times, in one forward each.
    """

    conditions: Annotated[
        tuple[Condition, ...], Meta(min_length=1, description="prompts under which each image is seen; concepts follow the prompt")
    ]
    times: Annotated[Times, Meta(min_length=1, description="t of z_t = (1 − t) z_0 + t ε; the same ε at every t of an image")]
    guidance: Annotated[
        Annotated[float, Meta(ge=0)] | None,
        Meta(description="scale that a guidance-distilled transformer takes; null for others, whose maps it does not change"),
    ] = None
    seed: Annotated[int, Meta(ge=0, lt=1 << 31, description="seed of the noise")] = 0

    def __post_init__(self) -> None:
        each_once(conditions=self.conditions, times=self.times)
