"""The sections of params.yaml that this package reads: which probes are fitted and how."""

from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from sgpipe.backbones.config import Condition, each_once

Kind = Literal["mlp", "cnn", "wrn"]
Feature = Literal["saliency", "cross", "concat", "triple", "diff"]
Epochs = Annotated[int, Meta(ge=1)]
Rate = Annotated[float, Meta(gt=0, le=1)]


class Fitting(Struct, frozen=True, forbid_unknown_fields=True):
    """How a probe is fitted. The batch size and the epochs are part of the result."""

    batch_size: Annotated[int, Meta(ge=2, description="maps per step")] = 64
    learning_rate: Annotated[
        dict[Kind, Rate], Meta(description="highest rate of AdamW by probe: it rises for a fifth of the steps, then falls to 0")
    ] = field(default_factory=lambda: {"mlp": 0.003, "cnn": 0.01, "wrn": 0.01})
    weight_decay: Annotated[float, Meta(ge=0, description="of AdamW")] = 0.01
    patience: Annotated[int, Meta(ge=1, description="epochs without a better validation accuracy after which fitting stops")] = 3


class NoiseAware(Struct, frozen=True, forbid_unknown_fields=True):
    """The probe of noised maps that is told t, for the ranking loss."""

    probe: Annotated[Kind, Meta(description="its architecture")] = "cnn"
    feature: Annotated[Feature, Meta(description="its features")] = "concat"
    epochs: Annotated[Epochs, Meta(description="most epochs")] = 8
    conditions: Annotated[
        tuple[Condition, ...],
        Meta(
            min_length=1,
            description="prompts whose maps it is fitted on; with wrong and neutral ones among them the word is no sure guide",
        ),
    ] = ("relational", "wrong", "neutral")

    def __post_init__(self) -> None:
        each_once(conditions=self.conditions)


class Probes(Struct, frozen=True, forbid_unknown_fields=True):
    """Section `probes`. Relation probes: which are fitted, how, and what controls stand beside them. Every probe of `epochs` is
    fitted on every feature, in every layer group, with every seed.
    """

    epochs: Annotated[
        dict[Kind, Epochs],
        Meta(min_length=1, description="probes and the most epochs of each: mlp, cnn (TinyCNN), wrn (WRN-28-width)"),
    ]
    features: Annotated[
        tuple[Feature, ...], Meta(min_length=1, description="what a probe sees: one kind of map or a fusion of both")
    ] = ("saliency", "cross", "concat", "triple", "diff")
    width: Annotated[int, Meta(ge=1, description="w of WRN-28-w")] = 1
    seeds: Annotated[int, Meta(ge=1, description="fits of each cell, each with another fold as its test set")] = 3
    shuffled_seeds: Annotated[int, Meta(ge=1, description="how many of these fits are repeated with shuffled labels")] = 1
    folds: Annotated[
        int,
        Meta(
            ge=3, description="folds of groups that share no name pair or image: one is the test set, the next val, the rest train"
        ),
    ] = 5
    resamples: Annotated[int, Meta(ge=100, description="bootstrap resamples of such groups for the 95 % intervals")] = 1000
    seed: Annotated[int, Meta(ge=0, lt=1 << 31, description="seed of folds, weights, order and resamples")] = 0
    fitting: Annotated[Fitting, Meta(description="how each is fitted")] = Fitting()
    noise_aware: Annotated[NoiseAware, Meta(description="the probe of noised maps, told t, for the ranking loss")] = NoiseAware()

    def __post_init__(self) -> None:
        each_once(features=self.features)
        lacking = sorted({*self.epochs, self.noise_aware.probe} - {*self.fitting.learning_rate})
        if lacking:
            raise ValueError(f"fitting.learning_rate: none for {', '.join(lacking)}; name a rate for each probe that is fitted")
        if self.shuffled_seeds > self.seeds:
            raise ValueError(f"shuffled_seeds: got {self.shuffled_seeds}; valid: 1..{self.seeds}, as seeds is {self.seeds}")
