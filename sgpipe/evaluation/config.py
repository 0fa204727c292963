"""The sections of params.yaml that this package reads: what is sampled, who judges it, and how sure the figures are."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Final, Literal

from msgspec import Meta, Struct

from sgpipe.errors import ParamsError

Prompt = Literal["neutral", "relational", "conflicting"]
Graph = Literal["positive", "negative", "empty", "shuffled"]
HEADLINE: Final = "neutral"
"""The prompt that names no relation: whatever an image shows of one comes from the graph."""


class Evaluate(Struct, frozen=True, forbid_unknown_fields=True):
    """Section `evaluate`. What is sampled for the evaluation, by which arms, and how sure its figures are. The batch size is part
    of the result: another one may round differently.
    """

    adapters: Annotated[
        dict[str, Literal["graphs", "empty"]],
        Meta(
            description="arms beside the base model, as `outputs/lora/<arm>` names them: what each is given, the graphs of "
            "`conditions` or always the empty one (an arm trained on text alone)"
        ),
    ]
    conditions: Annotated[
        dict[Prompt, Annotated[tuple[Graph, ...], Meta(min_length=1)]],
        Meta(
            description="prompts, and the graphs under each: the triple's, its negative's, none, another triple's. "
            "conflicting says the negative's relation"
        ),
    ]
    seeds: Annotated[
        tuple[Annotated[int, Meta(ge=0, lt=1 << 31)], ...],
        Meta(min_length=1, description="images of each triple and condition; one seed is one noise per triple"),
    ] = (0, 1, 2)
    per_class: Annotated[
        Annotated[int, Meta(ge=1)] | None, Meta(description="val triples of each class that are evaluated; null takes all")
    ] = None
    seen: Annotated[
        int,
        Meta(ge=0, description="train graphs of several triples that are sampled, too, to compare held-out combinations with them"),
    ] = 0
    steps: Annotated[int, Meta(ge=1, description="Euler steps from noise to image")] = 4
    guidance: Annotated[
        Annotated[float, Meta(ge=0)] | None,
        Meta(
            description="scale, of the base and of every arm: an input of a guidance-distilled transformer, elsewhere "
            "classifier-free guidance with the empty prompt and no graph; null or 1 is none"
        ),
    ] = None
    batch_size: Annotated[int, Meta(ge=1, description="images per forward of the transformer")] = 16
    shard_size: Annotated[int, Meta(ge=1, description="images per shard, the unit of resuming")] = 96

    def __post_init__(self) -> None:
        if "base" in self.adapters:
            raise ValueError("adapters: base is the arm without an adapter; name the others only")
        for graphs in self.conditions.values():
            if len(set(graphs)) != len(graphs):
                raise ValueError(f"conditions: got {list(graphs)}; name each graph once")
        if not {"positive", "negative"} <= set(self.conditions.get(HEADLINE, ())):
            raise ValueError(f"conditions: {HEADLINE} needs at least positive and negative, which the headline compares")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds: got {list(self.seeds)}; name each once")


class Statistics(Struct, frozen=True, forbid_unknown_fields=True):
    """Section `statistics`. How sure figures are: when a judge may judge, the confidence of intervals, the power of tests."""

    threshold: Annotated[
        float,
        Meta(
            gt=0.5,
            le=1.0,
            description="least share of ground-truth images of a predicate on which a judge must be right to be used for it",
        ),
    ] = 0.8
    confidence: Annotated[float, Meta(gt=0.5, lt=1.0, description="of the intervals")] = 0.95
    resamples: Annotated[int, Meta(ge=100, description="of the bootstrap by triple")] = 2000
    power: Annotated[float, Meta(gt=0.5, lt=1.0, description="chance of seeing the effect, for the number of triples needed")] = 0.8
    seed: Annotated[int, Meta(ge=0, lt=1 << 32, description="seed of the resampling")] = 0


class Ablation(Struct, frozen=True, forbid_unknown_fields=True):
    """Section `ablation`. Epochs of training runs, judged on the same triples and seeds."""

    epochs: Annotated[
        tuple[Annotated[int, Meta(ge=1)], ...],
        Meta(min_length=2, description="epochs whose checkpoints are compared, each with the one before it"),
    ]
    runs: Annotated[
        tuple[str, ...],
        Meta(min_length=1, description="training runs in outputs/lora; runs of other training seeds are pooled with the first"),
    ] = ("graph",)

    def __post_init__(self) -> None:
        if list(self.epochs) != sorted(set(self.epochs)):
            raise ValueError(f"epochs: got {list(self.epochs)}; name each once, in ascending order")
        if len(set(self.runs)) != len(self.runs):
            raise ValueError(f"runs: got {list(self.runs)}; name each once")


def check_runs(runs: Iterable[str], adapters: Mapping[str, str]) -> None:
    """Epochs are compared by what they make of graphs under a prompt that names no relation; `adapters` is `evaluate.adapters`.

    Raises `ParamsError` for a run that is given no graphs, which can show nothing there.
    """
    for run in runs:
        why = None
        if run == "base":
            why = "is the model without an adapter, no training run"
        elif adapters.get(run, "graphs") != "graphs":
            why = f"is given no graphs (evaluate.adapters.{run}: {adapters[run]}), and epochs are compared by g⁺ and g⁻"
        if why:
            valid = [name for name, given in adapters.items() if given == "graphs"]
            raise ParamsError(
                f"ablation.runs: {run} {why}; valid here: {', '.join(valid) or 'none'}, and runs of other seeds of these"
            )


BUILT_IN: Final = ("open_clip", "zero_shot_detector")
"""Kinds of judge that this package brings; any other name is one that an installed package brings by entry point."""


class Judge(Struct, frozen=True, forbid_unknown_fields=True):
    """One judge."""

    kind: Annotated[
        str,
        Meta(
            pattern=r"^[a-z][a-z0-9_]*$",
            description="open_clip: an image-text model; zero_shot_detector: one of transformers (OWLv2, Grounding DINO) with box "
            "geometry; or the name of a judge that an installed package brings (sgworld, sgworld_several: the exact readers of the "
            "drawn worlds of one relation and of several)",
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
        str | None, Meta(description="open_clip architecture: published tag or checkpoint path of its weights")
    ] = None
    revision: Annotated[str | None, Meta(description="pinned commit of a detector's hub id")] = None
    box_threshold: Annotated[float, Meta(gt=0.0, lt=1.0, description="zero_shot_detector: least score of a box that counts")] = 0.1

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
    """Section `judge`. Who judges the images. Judges may be changed without sampling anything again."""

    judges: Annotated[dict[str, Judge], Meta(min_length=1, description="judges by the name that tables use")]
    headline: Annotated[str, Meta(description="the judge whose figures stand in the first table")]
    files: Annotated[str, Meta(min_length=1, description="folder of weights that DVC watches, presets/hub where there is none")] = (
        "presets/hub"
    )
    batch_size: Annotated[int, Meta(ge=1, description="images per forward of a judge")] = 64
    shard_size: Annotated[int, Meta(ge=1, description="images per shard, the unit of resuming")] = 1024

    def __post_init__(self) -> None:
        for name in self.judges:
            if not name.replace("_", "").isalnum():
                raise ValueError(f"judges: got the name {name!r}; valid are letters, digits and _")
        if self.headline not in self.judges:
            raise ValueError(f"headline: got {self.headline!r}; valid: {', '.join(self.judges)}")


class Quality(Struct, frozen=True, forbid_unknown_fields=True):
    """Section `quality`. By which networks the quality of images is measured, beside ground-truth ones. The images are those that
    count for an arm; nothing is sampled for them.
    """

    tower: Annotated[
        str | None,
        Meta(
            description="open_clip model that is no judge: `local-dir:<folder>`, `hf-hub:<id>`, or an architecture with "
            "`pretrained`; null leaves its figures out"
        ),
    ] = None
    pretrained: Annotated[str | None, Meta(description="published tag or checkpoint path of the architecture's weights")] = None
    inception: Annotated[
        str | None,
        Meta(
            description="file of the published Inception network as TorchScript (inception-2015-12-05.pt), by which FID, KID and "
            "Inception Score are defined; null leaves them out"
        ),
    ] = None
    files: Annotated[str, Meta(min_length=1, description="folder of weights that DVC watches, presets/hub where there is none")] = (
        "presets/hub"
    )
    reference: Annotated[int, Meta(ge=2, description="at most so many crops of train triples, which images are compared with")] = (
        5000
    )

    def __post_init__(self) -> None:
        if self.pretrained and not self.tower:
            raise ValueError(f"pretrained: got {self.pretrained!r} without a tower; name the architecture in tower")
        if self.tower and not (self.pretrained or ":" in self.tower):
            raise ValueError(
                f"pretrained: missing; architecture {self.tower!r} needs a tag or a checkpoint path, or give tower as "
                "local-dir:<folder>"
            )


class Study(Struct, frozen=True, forbid_unknown_fields=True):
    """Section `study`. The seed document's prompts and claims, for which arms; steps and guidance are those of `evaluate`."""

    arms: Annotated[tuple[str, ...], Meta(description="arms that are studied, each in outputs/study/<arm>; none by default")] = ()
    one_sample: Annotated[
        str | None, Meta(description="folder of an adapter trained on one triple, as outputs/lora/one/adapter; null leaves it out")
    ] = None
    seeds: Annotated[
        tuple[Annotated[int, Meta(ge=0, lt=1 << 31)], ...], Meta(min_length=2, description="seeds of the noise, two or more")
    ] = (0, 1, 2)
