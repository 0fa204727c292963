"""What `lora` and `graph_tokens` mean for each arm, written one way, so that two spellings of a meaning train once."""

from collections.abc import Sequence

import torch
from msgspec.structs import replace

from sgpipe.backbones.rectified_flow import generator
from sgpipe.errors import ParamsError
from sgpipe.lora.adapter import Arm
from sgpipe.params.backbone import Backbone
from sgpipe.params.blocks import Blocks
from sgpipe.params.graph_tokens import GraphTokens
from sgpipe.params.lora import (
    Conditions,
    Lora,
    Losses,
    Margin,
    Preference,
    Ranking,
    Times,
    Weighted,
)

_NO_BLOCKS = Blocks(())


def random_blocks(chosen: Sequence[int], count: int, seed: int, key: str) -> tuple[int, ...]:
    """As many of `count` blocks as `chosen` has, another set than that. Raises `ParamsError` where there is no other."""
    if not chosen:
        return ()
    if len(chosen) == count:
        raise ParamsError(
            f"lora.arms: random_blocks: {key} names all {count} blocks, so there is no other set of as many; drop the arm"
        )
    random = generator(seed, "random blocks", key)
    while True:
        drawn = tuple(sorted(torch.randperm(count, generator=random)[: len(chosen)].tolist()))
        if drawn != tuple(chosen):
            return drawn


def resolve(name: str, lora: Lora, tokens: GraphTokens, backbone: Backbone) -> Arm:
    """The arm of this name in canonical form. Raises `ParamsError` for blocks that the model lacks.

    Block sets become ascending indices, targets take one order, and what a choice leaves without effect its default value:
    settings of losses of weight 0, of another density, of an encoder that is not read.
    """
    double = lora.blocks.resolve(backbone.double_blocks, "lora.blocks")
    single = lora.single_blocks.resolve(backbone.single_blocks, "lora.single_blocks")
    if name == "projector_only":
        double = single = ()
    elif name == "random_blocks":
        double = random_blocks(double, backbone.double_blocks, lora.seed, "lora.blocks")
        single = random_blocks(single, backbone.single_blocks, lora.seed, "lora.single_blocks")
    plain = replace(
        lora,
        arms=(name,),
        blocks=Blocks(double),
        single_blocks=Blocks(single),
        targets=tuple(sorted(lora.targets)),
        keep_epochs=tuple(sorted(lora.keep_epochs)),
        losses=_losses(lora.losses),
        times=_times(lora.times),
    )
    if not double and not single:
        without = Lora(_NO_BLOCKS)
        plain = replace(
            plain, targets=without.targets, rank=without.rank, alpha=without.alpha, dropout=without.dropout
        )
    if name == "text_only":
        if not double and not single:
            raise ParamsError(
                "lora.arms: text_only trains LoRA alone, and lora.blocks is none; name blocks or drop the arm"
            )
        plain = replace(
            plain,
            conditions=Conditions(neutral=0.0, relational=1.0),
            optimiser=replace(lora.optimiser, token_rate=1.0),
        )
        return Arm(name, plain, None)
    return Arm(name, plain, tokens)


def _losses(losses: Losses) -> Losses:
    return Losses(
        flow=losses.flow,
        margin=losses.margin if losses.margin.weight else Margin(weight=0.0),
        preference=losses.preference if losses.preference.weight else Preference(),
        ranking=losses.ranking if losses.ranking.weight else Ranking(),
        saliency=losses.saliency if losses.saliency.weight else Weighted(),
    )


def _times(times: Times) -> Times:
    if times.density == "uniform":
        return Times(low=times.low, high=times.high)
    return times
