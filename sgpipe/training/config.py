"""The section of params.yaml that this package reads: how every arm is trained."""

from typing import Annotated, Literal

from msgspec import Meta, Struct

Share = Annotated[float, Meta(ge=0.0, le=1.0)]
Weight = Annotated[float, Meta(ge=0.0)]


class Times(Struct, frozen=True, forbid_unknown_fields=True):
    """t = low + (high − low) u with u uniform or σ(n) of a normal n, or a sampler's sigmas within the bounds, equally often."""

    density: Annotated[
        Literal["uniform", "logit_normal", "sampler"],
        Meta(description="of times within the bounds; `sampler` takes the sigmas of the base's scheduler, shifted as in sampling"),
    ] = "uniform"
    low: Annotated[float, Meta(ge=0.0, lt=1.0, description="lower bound; layout is decided near t = 1")] = 0.7
    high: Annotated[float, Meta(gt=0.0, le=1.0, description="upper bound")] = 1.0
    mean: Annotated[float, Meta(description="mean of n; logit_normal only")] = 0.0
    deviation: Annotated[float, Meta(gt=0.0, description="deviation of n; logit_normal only")] = 1.0
    steps: Annotated[int, Meta(ge=1, description="Euler steps of the sampler; sampler only")] = 4

    def __post_init__(self) -> None:
        if self.low >= self.high:
            raise ValueError(f"low: got low {self.low:g}, high {self.high:g}; low must be below high")


class Conditions(Struct, frozen=True, forbid_unknown_fields=True):
    """Probability of each kind of prompt; together 1."""

    neutral: Annotated[Share, Meta(description="both names without a relation")] = 1.0
    relational: Annotated[Share, Meta(description="the triple in words")] = 0.0
    dropped: Annotated[Share, Meta(description="the relational prompt without the words of the relation")] = 0.0
    wrong: Annotated[Share, Meta(description="another relation in words, the graph is right")] = 0.0
    conflicting: Annotated[Share, Meta(description="the negative graph in words, the graph is right")] = 0.0

    def __post_init__(self) -> None:
        total = sum(self.shares().values())
        if abs(total - 1.0) > 1e-6:
            raise ValueError(f"got {self.shares()}, together {total:g}; the probabilities must sum to 1")

    def shares(self) -> dict[str, float]:
        """Conditions of a probability above 0, in a fixed order."""
        return {name: share for name in self.__struct_fields__ if (share := getattr(self, name)) > 0}


class Margin(Struct, frozen=True, forbid_unknown_fields=True):
    """max(0, m − (ℓ(g⁻) − ℓ(g⁺)))."""

    weight: Annotated[Weight, Meta(description="0 leaves it out")] = 1.0
    margin: Annotated[float, Meta(gt=0.0, description="m, in units of the flow loss")] = 0.1


class Preference(Struct, frozen=True, forbid_unknown_fields=True):
    """Graph DPO: −log σ(−(β/2) [(ℓ(g⁺) − ℓ_ref(g⁺)) − (ℓ(g⁻) − ℓ_ref(g⁻))]), ℓ_ref of the base model."""

    weight: Annotated[Weight, Meta(description="0 leaves it out")] = 0.0
    beta: Annotated[float, Meta(gt=0.0, description="β, per unit of the flow loss")] = 50.0


class Ranking(Struct, frozen=True, forbid_unknown_fields=True):
    """L_rel-rank: max(0, m − ℓ⁺_y + ℓ⁻_y) on the logits of a frozen probe of saliency maps."""

    weight: Annotated[Weight, Meta(description="λ; 0 leaves it out")] = 0.0
    margin: Annotated[float, Meta(gt=0.0, description="m, in logits")] = 1.0
    group: Annotated[str, Meta(min_length=1, description="layer group of `maps.groups` that the probe reads")] = "middle"
    probe: Annotated[str | None, Meta(description="folder of the noise-aware probe")] = None

    def __post_init__(self) -> None:
        if self.weight and not self.probe:
            raise ValueError("probe: got null; name the folder of a noise-aware probe, or set weight to 0")


class Weighted(Struct, frozen=True, forbid_unknown_fields=True):
    """L_gen-rel: the flow loss weighted by the relation's saliency."""

    weight: Annotated[Weight, Meta(description="α; 0 leaves it out")] = 0.0
    group: Annotated[str, Meta(min_length=1, description="layer group of `maps.groups` whose maps weigh")] = "middle"


class Losses(Struct, frozen=True, forbid_unknown_fields=True):
    """Terms of the training loss; ℓ(g) is the mean squared error of the velocity under graph g."""

    flow: Annotated[Weight, Meta(description="weight of L_gen = ℓ(g⁺)")] = 1.0
    margin: Annotated[Margin, Meta(description="bounded contrastive margin")] = Margin()
    preference: Annotated[Preference, Meta(description="graph DPO")] = Preference()
    ranking: Annotated[Ranking, Meta(description="relation ranking")] = Ranking()
    saliency: Annotated[Weighted, Meta(description="saliency-weighted flow loss")] = Weighted()

    def __post_init__(self) -> None:
        terms = (self.margin.weight, self.preference.weight, self.ranking.weight, self.saliency.weight)
        if self.flow + sum(terms) == 0:
            raise ValueError("every weight is 0; give at least one loss a weight")

    @property
    def contrastive(self) -> bool:
        """Whether the negative graph must be computed."""
        return bool(self.margin.weight or self.preference.weight or self.ranking.weight)

    @property
    def maps(self) -> bool:
        """Whether saliency maps must be made along."""
        return bool(self.ranking.weight or self.saliency.weight)


class Optimiser(Struct, frozen=True, forbid_unknown_fields=True):
    """AdamW."""

    learning_rate: Annotated[float, Meta(gt=0.0, description="peak learning rate")] = 1e-4
    token_lr_multiplier: Annotated[
        float, Meta(gt=0.0, description="learning rate of projector, gate and graph encoder, in units of the others'")
    ] = 1.0
    weight_decay: Annotated[float, Meta(ge=0.0, description="decoupled weight decay")] = 0.01
    clip: Annotated[float, Meta(gt=0.0, description="largest norm of the gradient")] = 1.0
    schedule: Annotated[Literal["constant", "linear", "cosine"], Meta(description="of the learning rate after the warm-up")] = (
        "constant"
    )
    warmup: Annotated[int, Meta(ge=0, description="steps of linear warm-up")] = 0


class Validation(Struct, frozen=True, forbid_unknown_fields=True):
    """Control losses and images along the training; nothing of it is trained on."""

    every: Annotated[int, Meta(ge=1, description="epochs between two validations; first and last step have one")] = 5
    triples: Annotated[int, Meta(ge=0, description="at most so many triples; 0 takes all")] = 0
    bins: Annotated[int, Meta(ge=1, description="bins of t for the implicit preference accuracy")] = 3
    images: Annotated[int, Meta(ge=0, description="triples sampled under g⁺ and its swap; 0 samples none")] = 6
    steps: Annotated[int, Meta(ge=1, description="Euler steps of these images")] = 4


class Train(Struct, frozen=True, forbid_unknown_fields=True):
    """Section `train`. How every arm is trained: what it minimises, at which times and prompts, how long. An arm may have a seed of
    its own.
    """

    losses: Annotated[Losses, Meta(description="what is minimised")] = Losses()
    times: Annotated[Times, Meta(description="of the noise")] = Times()
    active_timesteps: Annotated[
        Literal["trained", "always"],
        Meta(
            description="where the adapter works in sampling: at times within `times.low` and `times.high` and the base alone at "
            "others, or always"
        ),
    ] = "trained"
    conditions: Annotated[Conditions, Meta(description="prompts")] = Conditions()
    optimiser: Annotated[Optimiser, Meta(description="AdamW")] = Optimiser()
    epochs: Annotated[int, Meta(ge=1, description="passes over the train triples")] = 20
    batch_size: Annotated[int, Meta(ge=1, description="triples per forward, over all processes")] = 16
    gradient_accumulation_steps: Annotated[int, Meta(ge=1, description="forwards per step")] = 1
    ema_decay: Annotated[
        Annotated[float, Meta(gt=0.0, lt=1.0)] | None,
        Meta(description="decay of the averaged weights that are exported; null exports the last ones"),
    ] = None
    precision: Annotated[
        Literal["float32", "bfloat16", "auto"],
        Meta(
            description="of matrix products in training; weights keep theirs; auto takes what two seconds of them are faster in on "
            "this machine, which `outputs/resolved` and the arm's metrics then name"
        ),
    ] = "bfloat16"
    attention: Annotated[
        Literal["native", "math"],
        Meta(description="attention of PyTorch: the fastest kernel, or plain products (bfloat16 on a CPU needs these)"),
    ] = "native"
    compile: Annotated[bool, Meta(description="fuse every block with torch.compile")] = False
    gradient_checkpointing: Annotated[bool, Meta(description="compute blocks twice to save memory")] = False
    guidance: Annotated[
        Annotated[float, Meta(ge=0)] | None,
        Meta(description="scale that a guidance-distilled transformer takes; null for others, trained on conditional velocities"),
    ] = None
    validation: Annotated[Validation, Meta(description="control losses and images")] = Validation()
    keep_epochs: Annotated[tuple[int, ...], Meta(description="epochs after which the adapter is kept, too")] = ()
    save_every: Annotated[int, Meta(ge=1, description="steps between two checkpoints")] = 50
    seed: Annotated[int, Meta(ge=0, lt=1 << 32, description="seed of weights, order, noise, times and prompts")] = 0

    def steps_after(self, epoch: int, triples: int) -> int:
        """Steps that end so many passes over so many train triples."""
        return epoch * triples // (self.batch_size * self.gradient_accumulation_steps)

    def kept_steps(self, triples: int) -> dict[int, int]:
        """The epochs of `keep_epochs` by the step that ends them.

        Raises `ValueError` where one ends before the first step, or two at the same.
        """
        found: dict[int, int] = {}
        for epoch in sorted(self.keep_epochs):
            step = self.steps_after(epoch, triples)
            why = f"a step takes {self.batch_size * self.gradient_accumulation_steps} triples, and an epoch has {triples}"
            if step == 0:
                raise ValueError(
                    f"train.keep_epochs: got {epoch}, which ends before the first step ({why}); keep later epochs, or lower "
                    "train.batch_size"
                )
            if step in found:
                raise ValueError(
                    f"train.keep_epochs: got {found[step]} and {epoch}, which both end at step {step} ({why}); keep one of the two "
                    "or lower train.batch_size"
                )
            found[step] = epoch
        return found

    def __post_init__(self) -> None:
        if len(set(self.keep_epochs)) != len(self.keep_epochs):
            raise ValueError(f"keep_epochs: got {list(self.keep_epochs)}; name each once")
        late = [epoch for epoch in self.keep_epochs if not 1 <= epoch <= self.epochs]
        if late:
            raise ValueError(f"keep_epochs: got {late[0]}; valid: 1..{self.epochs} (train.epochs)")
        if self.compile and self.losses.maps:
            raise ValueError(
                "compile: got true; saliency maps are read by hooks that compiled blocks do not run: set compile to false, or "
                "the weights of losses.ranking and losses.saliency to 0"
            )
