"""What `lora` and `graph_tokens` mean for each arm, written one way, so that two spellings of a meaning train once."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from msgspec.structs import replace

from sgpipe.attention_maps.config import Maps
from sgpipe.backbones.config import Backbone
from sgpipe.backbones.rectified_flow import generator
from sgpipe.errors import DataError, ParamsError
from sgpipe.graph_encoder.config import GraphTokens
from sgpipe.params.blocks import Blocks
from sgpipe.params.load import decode, to_builtins
from sgpipe.training.config import (
    Conditions,
    Lora,
    Losses,
    Margin,
    Preference,
    Ranking,
    Times,
    Weighted,
    split_arm,
)

_NO_BLOCKS = Blocks(())


@dataclass(frozen=True)
class Arm:
    """What one arm trains, in canonical form: equal meanings are equal here.

    `graph_tokens` is None for graphs in words, `maps` where no loss reads saliency maps.
    """

    name: str
    lora: Lora
    graph_tokens: GraphTokens | None
    maps: Maps | None = None

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        parts = {"lora": self.lora, "graph_tokens": self.graph_tokens, "maps": self.maps}
        return {"arm": self.name, **{key: to_builtins(part) for key, part in parts.items()}}

    @classmethod
    def read(cls, plain: Mapping[str, Any], source: str) -> "Arm":
        """From what `plain` gave. Raises `ParamsError` naming the key at fault."""
        tokens, maps = plain["graph_tokens"], plain["maps"]
        return cls(
            plain["arm"],
            decode("lora", plain["lora"], Lora, source),
            None if tokens is None else decode("graph_tokens", tokens, GraphTokens, source),
            None if maps is None else decode("maps", maps, Maps, source),
        )


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


def resolve(name: str, lora: Lora, tokens: GraphTokens, backbone: Backbone, maps: Maps | None = None) -> Arm:
    """The arm of this name in canonical form. Raises `ParamsError` for blocks that the model lacks.

    Block sets become ascending indices, targets take one order, and what a choice leaves without effect its default value:
    settings of losses of weight 0 and of another density. `tokens` stay as they are.
    """
    kind, seed = split_arm(name)
    lora = lora if seed is None else replace(lora, seed=seed)
    double = lora.blocks.resolve(backbone.double_blocks, "lora.blocks")
    single = lora.single_blocks.resolve(backbone.single_blocks, "lora.single_blocks")
    if kind == "projector_only":
        double = single = ()
    elif kind == "random_blocks":
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
    if kind == "text_only":
        if not double and not single:
            raise ParamsError(
                "lora.arms: text_only trains LoRA alone, and lora.blocks is none; name blocks or drop the arm"
            )
        plain = replace(
            plain,
            conditions=Conditions(neutral=0.0, relational=1.0),
            optimiser=replace(lora.optimiser, token_rate=1.0),
        )
        return Arm(name, plain, None, _maps(plain.losses, maps))
    return Arm(name, plain, tokens, _maps(plain.losses, maps))


def _losses(losses: Losses) -> Losses:
    return Losses(
        flow=losses.flow,
        margin=losses.margin if losses.margin.weight else Margin(weight=0.0),
        preference=losses.preference if losses.preference.weight else Preference(),
        ranking=losses.ranking if losses.ranking.weight else Ranking(),
        saliency=losses.saliency if losses.saliency.weight else Weighted(),
    )


def _maps(losses: Losses, maps: Maps | None) -> Maps | None:
    """What the losses read of `maps`: their groups, and how maps are made."""
    wanted = {term.group for term in (losses.ranking, losses.saliency) if term.weight}
    if not wanted:
        return None
    groups = maps.groups if maps is not None else {}
    if lacking := sorted(wanted - groups.keys()):
        raise ParamsError(
            f"lora.losses: group {lacking[0]!r} is not in maps.groups; valid: {', '.join(groups) or 'none'}"
        )
    assert maps is not None
    used = {name: blocks for name, blocks in groups.items() if name in wanted}
    return Maps(used, maps.normalisation, maps.concept_tokens, maps.side)


def _times(times: Times) -> Times:
    bounds = Times(low=times.low, high=times.high)
    if times.density == "uniform":
        return bounds
    if times.density == "sampler":
        return replace(bounds, density=times.density, steps=times.steps)
    return replace(bounds, density=times.density, mean=times.mean, deviation=times.deviation)


def read_arm(path: Path) -> Arm:
    """What stage `resolve` wrote for an arm. Raises `DataError` where there is none."""
    try:
        return Arm.read(json.loads(path.read_text(encoding="utf-8")), str(path))
    except FileNotFoundError:
        raise DataError(
            f"{path}: no such file; name the arm in lora.arms and run `dvc repro resolve`"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: is no resolved arm ({error}); run `dvc repro resolve`") from None
