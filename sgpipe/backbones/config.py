"""The sections of params.yaml that this package reads: the generator, and what its encoders cache."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct


class Backbone(Struct, frozen=True, forbid_unknown_fields=True):
    """Section `backbone`. The generator: which checkpoint, at what precision, and what block layout it is expected to have. A
    diffusers pipeline by folder or hub id.
    """

    model: Annotated[str, Meta(min_length=1, description="local folder or hub id of a diffusers pipeline")]
    double_blocks: Annotated[
        int, Meta(ge=0, description="double-stream (MM-DiT) blocks the checkpoint must have; block ranges are checked against it")
    ]
    single_blocks: Annotated[int, Meta(ge=0, description="single-stream blocks the checkpoint must have")]
    resolution: Annotated[int, Meta(ge=16, multiple_of=8, description="side of generated images and of crops, pixels")]
    max_sequence_length: Annotated[
        int, Meta(ge=1, le=512, description="tokens of T5 or of the chat model per prompt, padding included")
    ]
    revision: Annotated[str | None, Meta(description="pinned commit of a hub id, which needs one; null for a folder")] = None
    files: Annotated[
        str,
        Meta(min_length=1, description="folder whose parts DVC watches: model itself if it is a folder, presets/hub for a hub id"),
    ] = "presets/hub"
    dtype: Annotated[Literal["float32", "bfloat16", "float16"], Meta(description="precision of the weights")] = "float32"
    quantisation: Annotated[
        Literal["int8", "nf4"] | None,
        Meta(
            description="of the transformer's linear layers, by bitsandbytes on a CUDA GPU: 8 bits (LLM.int8) or 4 (NF4); null "
            "keeps dtype"
        ),
    ] = None


def each_once(**values: Sequence[Any] | None) -> None:
    """Raises `ValueError` naming the knob that states something twice."""
    for name, given in values.items():
        if given is not None and len(set(given)) != len(given):
            raise ValueError(f"{name}: got {list(given)}; name each once")


Condition = Literal["relational", "neutral", "dropped", "wrong"]


class CachePrompts(Struct, frozen=True, forbid_unknown_fields=True):
    """Section `cache_prompts`. Text encodings: which prompts are encoded, and in what portions. The batch size is part of the
    result: another one may round differently.
    """

    conditions: Annotated[
        tuple[Condition, ...],
        Meta(
            min_length=1,
            description="prompts of each curated triple: with its relation, with `and` in its place, without it, with a wrong one",
        ),
    ] = ("relational", "neutral", "wrong")
    joined_concepts: Annotated[
        bool, Meta(description="the concepts of each prompt as one text, too, which `maps.variant: official_sd3` reads")
    ] = False
    batch_size: Annotated[int, Meta(ge=1, description="texts per forward of the encoders")] = 32
    shard_size: Annotated[int, Meta(ge=1, description="texts per file, the unit of resuming")] = 512
    seed: Annotated[int, Meta(ge=0, lt=1 << 32, description="seed of the choice of wrong relations")] = 0

    def __post_init__(self) -> None:
        each_once(conditions=self.conditions)


class CacheLatents(Struct, frozen=True, forbid_unknown_fields=True):
    """Section `cache_latents`. Image latents: in what portions the VAE encodes the curated crops. The batch size is part of the
    result: another one may round differently.
    """

    batch_size: Annotated[int, Meta(ge=1, description="crops per forward of the VAE")] = 8
    shard_size: Annotated[int, Meta(ge=1, description="crops per file, the unit of resuming")] = 512
