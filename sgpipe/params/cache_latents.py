"""Image latents: in what portions the VAE encodes the curated crops."""

from typing import Annotated

from msgspec import Meta, Struct


class CacheLatents(Struct, frozen=True, forbid_unknown_fields=True):
    """Section `cache_latents`. The batch size is part of the result: another one may round differently."""

    batch_size: Annotated[int, Meta(ge=1, description="crops per forward of the VAE")] = 8
    shard_size: Annotated[int, Meta(ge=1, description="crops per file, the unit of resuming")] = 512
