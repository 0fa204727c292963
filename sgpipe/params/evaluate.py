"""What is drawn for the evaluation, by which arms, and how sure its figures are."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Final, Literal

from msgspec import Meta, Struct

from sgpipe.errors import ParamsError

Prompt = Literal["neutral", "relational", "conflicting"]
Graph = Literal["positive", "negative", "empty", "shuffled"]
HEADLINE: Final = "neutral"
"""The prompt that names no relation: whatever a picture shows of one comes from the graph."""


class Evaluate(Struct, frozen=True, forbid_unknown_fields=True):
    """Section `evaluate`. The batch size is part of the result: another one may round differently."""

    adapters: Annotated[
        dict[str, Literal["graphs", "empty"]],
        Meta(
            description="arms beside the base model, as `outputs/lora/<arm>` names them: what each is given, the graphs of "
            "`draw` or always the empty one (an arm trained on text alone)"
        ),
    ]
    draw: Annotated[
        dict[Prompt, Annotated[tuple[Graph, ...], Meta(min_length=1)]],
        Meta(
            description="prompts, and the graphs under each: the triple's, its negative's, none, another triple's. "
            "conflicting says the negative's relation"
        ),
    ]
    seeds: Annotated[
        tuple[Annotated[int, Meta(ge=0, lt=1 << 31)], ...],
        Meta(
            min_length=1,
            description="pictures of each triple and condition; one seed is one noise per triple",
        ),
    ] = (0, 1, 2)
    per_class: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Meta(description="val triples of each class that are evaluated; null takes all"),
    ] = None
    steps: Annotated[int, Meta(ge=1, description="Euler steps from noise to picture")] = 4
    guidance: Annotated[
        Annotated[float, Meta(ge=0)] | None,
        Meta(
            description="scale that a guidance-distilled transformer takes, of the base and of every arm; null for others"
        ),
    ] = None
    batch_size: Annotated[int, Meta(ge=1, description="pictures per forward of the transformer")] = 16
    shard_size: Annotated[int, Meta(ge=1, description="pictures per shard, the unit of resuming")] = 96

    def __post_init__(self) -> None:
        if "base" in self.adapters:
            raise ValueError("adapters: base is the arm without an adapter; name the others only")
        for graphs in self.draw.values():
            if len(set(graphs)) != len(graphs):
                raise ValueError(f"draw: got {list(graphs)}; name each graph once")
        if not {"positive", "negative"} <= set(self.draw.get(HEADLINE, ())):
            raise ValueError(
                f"draw: {HEADLINE} needs at least positive and negative, which the headline compares"
            )
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds: got {list(self.seeds)}; name each once")


class Statistics(Struct, frozen=True, forbid_unknown_fields=True):
    """Section `statistics`."""

    threshold: Annotated[
        float,
        Meta(
            gt=0.5,
            le=1.0,
            description="least share of ground-truth pictures of a predicate on which a judge must be right to be used for it",
        ),
    ] = 0.8
    confidence: Annotated[float, Meta(gt=0.5, lt=1.0, description="of the intervals")] = 0.95
    resamples: Annotated[int, Meta(ge=100, description="of the bootstrap by triple")] = 2000
    power: Annotated[
        float,
        Meta(gt=0.5, lt=1.0, description="chance of seeing the effect, for the number of triples needed"),
    ] = 0.8
    seed: Annotated[int, Meta(ge=0, lt=1 << 32, description="seed of the resampling")] = 0


class Ablation(Struct, frozen=True, forbid_unknown_fields=True):
    """Section `ablation`: epochs of training runs, judged on the same triples and seeds."""

    epochs: Annotated[
        tuple[Annotated[int, Meta(ge=1)], ...],
        Meta(min_length=2, description="epochs whose checkpoints are compared, each with the one before it"),
    ]
    runs: Annotated[
        tuple[str, ...],
        Meta(
            min_length=1,
            description="training runs in outputs/lora; runs of other training seeds are pooled with the first",
        ),
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
