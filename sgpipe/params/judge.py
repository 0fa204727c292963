"""Who judges the pictures."""

from typing import Annotated, Final

from msgspec import Meta, Struct

BUILT_IN: Final = ("open_clip", "zero_shot_detector")
"""Kinds of judge that this package brings; any other name is one that an installed package brings by entry point."""


class Judge(Struct, frozen=True, forbid_unknown_fields=True):
    """One judge."""

    kind: Annotated[
        str,
        Meta(
            pattern=r"^[a-z][a-z0-9_]*$",
            description="open_clip: an image-text model; zero_shot_detector: one of transformers (OWLv2, Grounding DINO) with box "
            "geometry; or the name of a judge that an installed package brings (sgworld: the drawn world's exact detector)",
        ),
    ]
    model: Annotated[
        str | None,
        Meta(
            description="open_clip: `local-dir:<folder>`, `hf-hub:<id>` or an architecture's name; zero_shot_detector: folder or "
            "hub id; null for a judge that another package brings"
        ),
    ] = None
    pretrained: Annotated[
        str | None,
        Meta(description="open_clip architecture: published tag or checkpoint path of its weights"),
    ] = None
    revision: Annotated[str | None, Meta(description="pinned commit of a detector's hub id")] = None
    box_threshold: Annotated[
        float, Meta(gt=0.0, lt=1.0, description="zero_shot_detector: least score of a box that counts")
    ] = 0.1

    def __post_init__(self) -> None:
        if (self.model is None) != (self.kind not in BUILT_IN):
            needs = "a model" if self.kind in BUILT_IN else "no model"
            raise ValueError(f"model: got {self.model!r}; kind {self.kind} takes {needs}")
        if self.kind != "open_clip" and self.pretrained is not None:
            raise ValueError(f"pretrained: got {self.pretrained!r}; only kind open_clip takes one")
        if self.kind == "open_clip" and not (self.pretrained or ":" in (self.model or "")):
            raise ValueError(
                f"pretrained: missing; architecture {self.model!r} needs a tag or a checkpoint path, or give "
                "model as local-dir:<folder>"
            )


class JudgeParams(Struct, frozen=True, forbid_unknown_fields=True):
    """Section `judge`. Judges may be changed without drawing anything again."""

    judges: Annotated[dict[str, Judge], Meta(min_length=1, description="judges by the name that tables use")]
    headline: Annotated[str, Meta(description="the judge whose figures stand in the first table")]
    files: Annotated[
        str,
        Meta(min_length=1, description="folder of weights that DVC watches, presets/hub where there is none"),
    ] = "presets/hub"
    batch_size: Annotated[int, Meta(ge=1, description="pictures per forward of a judge")] = 64
    shard_size: Annotated[int, Meta(ge=1, description="pictures per shard, the unit of resuming")] = 1024

    def __post_init__(self) -> None:
        for name in self.judges:
            if not name.replace("_", "").isalnum():
                raise ValueError(f"judges: got the name {name!r}; valid are letters, digits and _")
        if self.headline not in self.judges:
            raise ValueError(f"headline: got {self.headline!r}; valid: {', '.join(self.judges)}")
