"""How the negative graph g⁻ of a triple is made."""

from typing import Annotated, Literal

from msgspec import Meta, Struct


class Negatives(Struct, frozen=True, forbid_unknown_fields=True):
    """Section `negatives`."""

    confusions: Annotated[
        str | None,
        Meta(
            description="JSON {class: {class: count}}, as probe_table writes it; a class that it leaves out, or all with {}, "
            "takes the built-in table, as null does outside of DVC"
        ),
    ] = None
    choice: Annotated[
        Literal["hardest", "sampled"],
        Meta(description="the most frequent confusion, or one drawn with the counts as weights"),
    ] = "sampled"
    seed: Annotated[int, Meta(ge=0, lt=1 << 32, description="seed of the draw")] = 0
