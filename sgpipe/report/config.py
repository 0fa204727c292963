"""The sections of params.yaml that this package reads: what the report shows beside its tables."""

from typing import Annotated

from msgspec import Meta, Struct


class Report(Struct, frozen=True, forbid_unknown_fields=True):
    """Section `report`. What the report shows beside its tables."""

    chosen: Annotated[tuple[str, ...], Meta(description="triple ids whose panels come first; empty shows none")] = ()
    random: Annotated[int, Meta(ge=0, description="panels of triples taken by seed, never chosen by eye")] = 12
    worst: Annotated[int, Meta(ge=0, description="panels of the triples that the graph arm gets wrong most")] = 0
    sheets: Annotated[tuple[str, ...], Meta(description="classes whose saliency sheets are shown")] = (
        "left of",
        "above",
        "in front of",
        "riding",
    )
    seed: Annotated[int, Meta(ge=0, lt=1 << 32, description="seed of the random panels")] = 0
