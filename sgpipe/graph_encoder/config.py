"""The sections of params.yaml that this package reads: graph encoder, pre-training, and the tokens that a generator reads."""

from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct

from sgpipe.errors import ParamsError

LOCAL = "local-dir:"
"""How open_clip writes the folder of a model."""


class GraphEncoder(Struct, frozen=True, forbid_unknown_fields=True):
    """Section `graph_encoder`. The graph encoder's pre-training: which encoder, which image tower teaches it, how long. Batch
    sizes are part of the result: another one may round differently.
    """

    tower: Annotated[
        str,
        Meta(
            min_length=1,
            description="open_clip model that teaches: `local-dir:<folder>`, or an architecture with `pretrained`; not the judge",
        ),
    ]
    pretrained: Annotated[str | None, Meta(description="open_clip's tag of the weights; null for a folder")] = None
    files: Annotated[
        str, Meta(min_length=1, description="what DVC watches: the tower's folder, or presets/hub where it is none")
    ] = "presets/hub"
    block: Annotated[
        int,
        Meta(
            description="transformer block of the tower whose patches are read; −1 is the last one, whose patches no loss trained "
            "where a class token is pooled"
        ),
    ] = -2
    kind: Annotated[
        Literal["cgip", "open_vocabulary"],
        Meta(description="encoder: rows of a table for known names, or any name by the generator's text encoder"),
    ] = "cgip"
    embed: Annotated[int, Meta(ge=1, description="width of node, edge and graph vectors")] = 512
    width: Annotated[int, Meta(ge=1, description="width of hidden layers")] = 512
    layers: Annotated[int, Meta(ge=1, description="rounds of messages; for cgip after its first, as SGDiff counts")] = 5
    min_count: Annotated[int, Meta(ge=1, description="training relations that a name must occur in to get a row (cgip)")] = 1
    queries: Annotated[int, Meta(ge=1, description="queries of the attention that pools an image")] = 8
    geometric: Annotated[bool, Meta(description="relations from boxes join the annotated ones")] = True
    mirror: Annotated[bool, Meta(description="each training crop once more as its mirror image, left and right exchanged")] = True
    graphs: Annotated[int, Meta(ge=0, description="training relations at most, drawn by hash; 0 takes all")] = 0
    development: Annotated[float, Meta(ge=0.0, lt=1.0, description="share of training name pairs held out, to choose knobs by")] = (
        0.1
    )
    steps: Annotated[int, Meta(ge=1, description="steps of AdamW")] = 20000
    batch_size: Annotated[int, Meta(ge=2, description="graphs per step")] = 256
    masked_batch: Annotated[
        int, Meta(ge=1, description="graphs of a step whose masked loss is taken; it costs more than all else")
    ] = 64
    directional: Annotated[
        Annotated[float, Meta(ge=0.0, le=1.0)] | None,
        Meta(
            description="share of a step's graphs that state one of the six directional relations; null draws all relations alike"
        ),
    ] = None
    rate: Annotated[float, Meta(gt=0.0, description="peak learning rate")] = 1e-3
    weight_decay: Annotated[float, Meta(ge=0.0, description="of matrices")] = 0.02
    masked_weight: Annotated[float, Meta(ge=0.0, description="of the masked loss beside the contrastive one")] = 1.0
    tower_batch: Annotated[int, Meta(ge=1, description="crops per forward of the tower")] = 64
    shard_size: Annotated[int, Meta(ge=1, description="crops per file of features, the unit of resuming")] = 512
    seed: Annotated[int, Meta(ge=0, lt=1 << 31, description="seed of everything drawn")] = 0

    def __post_init__(self) -> None:
        if self.masked_batch > self.batch_size:
            raise ValueError(f"masked_batch: got {self.masked_batch}; valid: 1 to batch_size, which is {self.batch_size}")
        if self.tower.startswith(LOCAL):
            folder = self.tower.removeprefix(LOCAL)
            if self.files != folder:
                raise ValueError(
                    f"files: got {self.files!r}; the tower is the folder {folder}, set files to it, so that DVC sees its weights"
                )
            if self.pretrained is not None:
                raise ValueError(f"pretrained: got {self.pretrained!r}; a tower in a folder has its own weights: null")
        elif self.pretrained is None:
            raise ValueError(f"pretrained: got null; the architecture {self.tower} needs open_clip's tag of its weights")


class GraphTokens(Struct, frozen=True, forbid_unknown_fields=True):
    """Section `graph_tokens`. How a scene graph becomes tokens beside the prompt's."""

    layout: Annotated[
        Literal["triple", "roles", "objects", "edges"],
        Meta(
            description="one token per triple; three of it (subject, predicate, object); one per related object, which is its "
            "name's frozen text embedding plus what its triples say of it; or one per related object, its name's alone, and "
            "one per triple, made of both ends' names and a learned vector per predicate"
        ),
    ] = "objects"
    names: Annotated[
        Literal["alone", "prompt"],
        Meta(
            description="layouts objects and edges: an object's name as the text encoder reads it alone, or the mean of the "
            "prompt's own rows that say it (alone where the prompt does not)"
        ),
    ] = "alone"
    relation: Annotated[
        Literal["table", "encoder"],
        Meta(
            description="layout objects: what a triple says of an object is a learned vector per (predicate, role), or is read "
            "from the graph encoder; layout edges always has the table, triple and roles read the encoder"
        ),
    ] = "table"
    relation_scale: Annotated[
        float, Meta(gt=0.0, le=10.0, description="size of what fresh projections give, in units of a text embedding")
    ] = 0.5
    global_token: Annotated[bool, Meta(description="one more token for the whole graph")] = False
    encoder: Annotated[
        Annotated[str, Meta(min_length=1)] | None,
        Meta(
            description="folder of the graph encoder that is read; null starts an open-vocabulary one from nothing, which is then "
            "trained with the tokens"
        ),
    ] = None
    train_encoder: Annotated[bool, Meta(description="train the graph encoder of a folder on with the tokens")] = False
    injection: Annotated[
        Literal["prepend", "residual"],
        Meta(description="tokens before the prompt's, or added behind a gate to the prompt's tokens of the names"),
    ] = "prepend"
    enter: Annotated[
        int,
        Meta(
            ge=0,
            description="block at which prepended tokens join the text, single-stream blocks after double-stream ones; those "
            "before it see no graph and are computed once for all graphs of a sample",
        ),
    ] = 0

    def __post_init__(self) -> None:
        if self.injection == "residual" and self.enter:
            raise ValueError(f"enter: got {self.enter}; residual adds to words before the first block: set it to 0")
        if self.injection == "residual" and (self.layout != "objects" or self.global_token):
            raise ValueError(
                f"injection: residual adds to the words of objects, so it needs layout objects without global_token; "
                f"got layout {self.layout}, global_token {str(self.global_token).lower()}"
            )
        reads = {"triple": "encoder", "roles": "encoder", "edges": "table"}.get(self.layout, self.relation)
        if self.relation != reads:
            raise ValueError(f"relation: got {self.relation}; layout {self.layout} has {reads} alone: set relation to {reads}")
        if self.names == "prompt" and (self.injection == "residual" or self.layout not in ("objects", "edges")):
            raise ValueError(
                f"names: got prompt with layout {self.layout}, injection {self.injection}; prepended tokens of the layouts objects "
                "and edges alone carry names: set names to alone"
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

    def check(self, blocks: int) -> None:
        """Raises `ParamsError` where the tokens would enter behind the last of so many blocks."""
        if self.enter >= blocks:
            raise ParamsError(f"graph_tokens.enter: got {self.enter}; valid: 0..{blocks - 1}, the blocks of this model")

    def files(self) -> dict[str, Path]:
        """The folder of the graph encoder by its knob, where one is read."""
        return {"graph_tokens.encoder": Path(self.encoder)} if self.encoder else {}
