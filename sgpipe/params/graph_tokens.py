"""How a scene graph becomes tokens beside the prompt's."""

from typing import Annotated, Literal

from msgspec import Meta, Struct


class GraphTokens(Struct, frozen=True, forbid_unknown_fields=True):
    """Section `graph_tokens`."""

    layout: Annotated[
        Literal["triple", "roles", "objects"],
        Meta(
            description="one token per triple; three of it (subject, predicate, object); or one per related object, which is "
            "its name's frozen text embedding plus what its triples say of it"
        ),
    ] = "objects"
    relation: Annotated[
        Literal["table", "encoder"],
        Meta(
            description="layout objects: what a triple says of an object is a learned vector per (predicate, role), or is read "
            "from the graph encoder; the other layouts always read the encoder"
        ),
    ] = "table"
    relation_scale: Annotated[
        float,
        Meta(
            gt=0.0, le=10.0, description="size of what fresh projections give, in units of a text embedding"
        ),
    ] = 0.5
    global_token: Annotated[bool, Meta(description="one more token for the whole graph")] = False
    encoder: Annotated[
        Annotated[str, Meta(min_length=1)] | None,
        Meta(
            description="folder of the graph encoder that is read; null starts an open-vocabulary one from nothing, which is then "
            "trained with the tokens"
        ),
    ] = None
    train_encoder: Annotated[
        bool, Meta(description="train the graph encoder of a folder on with the tokens")
    ] = False
    injection: Annotated[
        Literal["prepend", "residual"],
        Meta(
            description="tokens before the prompt's, or added behind a gate to the prompt's tokens of the names"
        ),
    ] = "prepend"

    def __post_init__(self) -> None:
        if self.injection == "residual" and (self.layout != "objects" or self.global_token):
            raise ValueError(
                f"injection: residual adds to the words of objects, so it needs layout objects without global_token; "
                f"got layout {self.layout}, global_token {str(self.global_token).lower()}"
            )
        if self.layout != "objects" and self.relation != "encoder":
            raise ValueError(
                f"relation: layout {self.layout} reads the graph encoder; set relation to encoder, got {self.relation}"
            )

        if not self.needs_encoder and (self.encoder or self.train_encoder):
            raise ValueError(
                f"encoder: relation {self.relation} without global_token reads no graph encoder; set encoder to null and "
                f"train_encoder to false, or relation to encoder"
            )

    @property
    def needs_encoder(self) -> bool:
        """Whether a graph encoder must run."""
        return self.relation == "encoder" or self.global_token
