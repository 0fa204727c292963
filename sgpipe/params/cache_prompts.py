"""Text encodings: which prompts are encoded, and in what portions."""

from typing import Annotated, Literal

from msgspec import Meta, Struct

Condition = Literal["relational", "neutral", "dropped", "wrong"]


class CachePrompts(Struct, frozen=True, forbid_unknown_fields=True):
    """Section `cache_prompts`. The batch size is part of the result: another one may round differently."""

    conditions: Annotated[
        tuple[Condition, ...],
        Meta(
            min_length=1,
            description="prompts of each curated triple: with its relation, with `and` in its place, without it, with a wrong one",
        ),
    ] = ("relational", "neutral", "wrong")
    batch_size: Annotated[int, Meta(ge=1, description="texts per forward of the encoders")] = 32
    shard_size: Annotated[int, Meta(ge=1, description="texts per file, the unit of resuming")] = 512
    seed: Annotated[int, Meta(ge=0, lt=1 << 32, description="seed of the choice of wrong relations")] = 0

    def __post_init__(self) -> None:
        if len(set(self.conditions)) != len(self.conditions):
            raise ValueError(f"conditions: got {list(self.conditions)}; name each once")
