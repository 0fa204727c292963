"""All interventions on a shard of items, and what the judge says of their samples: tables of one row per item and intervention."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from sgpipe.arms.generation import GraphGenerator
from sgpipe.attention_maps.config import Maps
from sgpipe.backbones.base import Layout
from sgpipe.backbones.config import Backbone
from sgpipe.backbones.families import open_tokenizers, pipeline_parts
from sgpipe.backbones.source import locate
from sgpipe.backbones.truncation import Tokenizers
from sgpipe.datasets.tables import write_table
from sgpipe.errors import ParamsError
from sgpipe.evaluation.config import JudgeParams
from sgpipe.evaluation.judge_factory import open_judge
from sgpipe.evaluation.judges import Judge
from sgpipe.localisation.ablation import ablated_samples, means
from sgpipe.localisation.config import Localise
from sgpipe.localisation.figures import SETS
from sgpipe.localisation.heads import Head, attributions, patched_heads
from sgpipe.localisation.pairs import Item, conditions, texts_of_runs
from sgpipe.localisation.patching import PATCHED, Kind, Place, effects, patched_samples, walk
from sgpipe.localisation.runs import Runs, sample_of
from sgpipe.runs.shards import Make, Shard, Tick

_ITEM: Final = [("triple_id", pa.string()), ("seed", pa.int64())]
EFFECTS: Final = pa.schema(
    [
        *_ITEM,
        ("contrast", pa.string()),
        ("rows", pa.string()),
        ("block", pa.int64()),
        ("step", pa.int64()),
        ("projected", pa.float64()),
        ("squared", pa.float64()),
    ]
)
"""Terms of an effect's two sums (`patching`), of each item, place and step."""
HEADS: Final = pa.schema(
    [
        *_ITEM,
        ("set", pa.string()),
        ("block", pa.int64()),
        ("head", pa.int64()),
        ("step", pa.int64()),
        ("projected", pa.float64()),
        ("squared", pa.float64()),
    ]
)
"""Likewise of heads, g⁺ into g⁻: estimated by gradient (`set` is `attribution`), patched alone (`head`), or as one with the others
of a set, without block and head."""
SAMPLES: Final = pa.schema(
    [
        *_ITEM,
        ("method", pa.string()),
        ("kind", pa.string()),
        ("rows", pa.string()),
        ("group", pa.string()),
        ("block", pa.int64()),
        ("positive", pa.float32()),
        ("negative", pa.float32()),
        ("distance", pa.float64()),
    ]
)
"""The judge's scores of c⁺ and c⁻ on a sample, null where it abstains, and the sample's distance to the one without intervention:
root mean square over pixels of 0–1. `method`: `none` (kind g⁺ or g⁻), `patching` (kind a contrast) or `ablation`; an ablation is of
one block or of a group."""


@dataclass(frozen=True)
class Plan:
    """What is done with every item."""

    config: Localise
    blocks: Sequence[int]
    """Blocks that are patched and ablated, in the order of a forward."""
    groups: Mapping[str, Sequence[int]]
    """Layer groups, which are ablated."""

    @classmethod
    def of(cls, config: Localise, maps: Maps, layout: Layout) -> Self:
        """Raises `ParamsError` for blocks that the model lacks."""
        counts = layout.double_blocks, layout.single_blocks
        groups = {name: group.resolve(*counts, f"maps.groups.{name}") for name, group in maps.groups.items()}
        return cls(config, config.blocks.resolve(*counts, "localise.blocks"), groups)

    @property
    def places(self) -> list[Place]:
        """Contrasts × rows; those of the null, which are not sampled, last."""
        contrasts: list[Kind] = [*self.config.contrasts, "null"]
        return [Place(contrast, (rows,)) for contrast in contrasts for rows in self.config.rows]

    @property
    def sampled(self) -> int:
        """How many of `places` are sampled."""
        return len(self.config.contrasts) * len(self.config.rows)

    @property
    def ablated(self) -> list[tuple[str | None, Sequence[int]]]:
        """Groups by name, then each block alone."""
        return [*self.groups.items(), *((None, [block]) for block in self.blocks)] if self.config.ablations else []

    @property
    def units(self) -> int:
        """Interventions per item, of which progress is told: blocks patched, and ablations."""
        return len(self.blocks) + len(self.ablated) * len(self.config.ablations)


@dataclass(frozen=True)
class _Rows:
    """Rows of the three tables, item by item; heads alone need no judge."""

    items: Sequence[Item]
    judge: Judge | None
    effects: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    heads: list[dict[str, Any]]

    def add_heads(self, kind: str, head: Head | None, step: int, projected: Tensor, squared: Tensor) -> None:
        block, number = head or (None, None)
        for item, a, b in zip(self.items, projected.tolist(), squared.tolist(), strict=True):
            said = {"set": kind, "block": block, "head": number, "step": step}
            self.heads.append({**_id(item), **said, "projected": a, "squared": b})

    def add_effects(self, places: Sequence[Place], block: int, step: int, projected: Tensor, squared: Tensor) -> None:
        for place, up, down in zip(places, projected.tolist(), squared.tolist(), strict=True):
            said = {"contrast": place.contrast, "rows": "+".join(place.rows), "block": block, "step": step}
            values = zip(self.items, up, down, strict=True)
            self.effects.extend({**_id(item), **said, "projected": a, "squared": b} for item, a, b in values)

    def add_samples(self, images: NDArray[np.uint8], reference: NDArray[np.uint8], **said: Any) -> None:
        """One image of each item, in their order."""
        assert self.judge is not None
        scores = self.judge.scores(images, [(item.case.positive, item.case.negative) for item in self.items])
        apart = (images.astype(float) - reference) / 255
        distance = np.sqrt(np.square(apart).mean(axis=(1, 2, 3)))
        for item, (positive, negative), far in zip(self.items, scores.tolist(), distance.tolist(), strict=True):
            row = {"rows": None, "group": None, "block": None, **said, "distance": far}
            self.samples.append({**_id(item), **row, "positive": _known(positive), "negative": _known(negative)})


def _id(item: Item) -> dict[str, Any]:
    return {"triple_id": item.case.triple_id, "seed": item.seed}


def _known(score: float) -> float | None:
    return None if np.isnan(score) else score


def intervene(runs: Runs, plan: Plan, items: Sequence[Item], judge: Judge, tick: Callable[[int], object]) -> dict[str, pa.Table]:
    """Tables `EFFECTS`, `SAMPLES` and, of attributions, `HEADS` of these items.

    Raises `ParamsError` where the plan asks for what the runs do not have.
    """
    config, found = plan.config, _Rows(items, judge, [], [], [])
    if not runs.active:
        raise ParamsError(
            f"localise.steps: got {config.steps}; the adapter works at none of their times "
            f"({', '.join(f'{t:.3g}' for t in runs.times[:-1])}), so that no two runs differ: raise it"
        )
    if "graph" in config.ablations and not runs.conditions.told.prepended:
        raise ParamsError("localise.ablations: got graph; the runs have no graph tokens: take it out, or name an adapter with them")
    places, sampled = plan.places, plan.sampled
    both = torch.cat([sample_of(runs, "positive"), sample_of(runs, "negative")])
    recipients = dict.fromkeys(PATCHED[place.contrast][0] for place in places)
    firsts: dict[int, Tensor] = {}
    step_means, start, ends = [], runs.start(both), runs.start(both)
    for at in walk(runs, list(recipients)):
        ends = at.latents
        if at.step < runs.steps and "mean" in config.ablations:
            step_means.append(means(runs, at.latents[both], at.step, both))
        if at.records and config.heads:
            estimates, squared = attributions(runs, at)
            for head, values in estimates.items():
                found.add_heads("attribution", head, at.step, values, squared)
        for block in plan.blocks if at.records else ():
            made, velocities = effects(runs, at, block, places)
            found.add_effects(places, block, at.step, *made)
            if at.step == runs.active[0]:
                firsts[block], start = velocities[: sampled * runs.items], at.latents
    plain = {run: runs.images(ends[sample_of(runs, run)]) for run in ("positive", "negative")}
    for run, images in plain.items():
        found.add_samples(images, images, method="none", kind=run)
    for block in plan.blocks:
        latents = patched_samples(runs, start, block, places[:sampled], firsts[block]) if sampled else start[:0]
        for place, part in zip(places[:sampled], latents.split(runs.items), strict=True):
            said = {"method": "patching", "kind": place.contrast, "rows": "+".join(place.rows), "block": block}
            found.add_samples(runs.images(part), plain[PATCHED[place.contrast][0]], **said)
        tick(runs.items)
    for group, blocks in plan.ablated:
        alone = blocks[0] if group is None else None
        for ablated in config.ablations:
            images = runs.images(ablated_samples(runs, blocks, ablated, step_means))
            found.add_samples(images, plain["positive"], method="ablation", kind=ablated, group=group, block=alone)
            tick(runs.items)
    return {
        "effects": pa.Table.from_pylist(found.effects, schema=EFFECTS),
        "samples": pa.Table.from_pylist(found.samples, schema=SAMPLES),
        "heads": pa.Table.from_pylist(found.heads, schema=HEADS),
    }


def confirm_heads(runs: Runs, items: Sequence[Item], sets: Mapping[str, Sequence[Head]], tick: Tick) -> dict[str, pa.Table]:
    """Table `HEADS` of sets of heads, each patched as one; a set of a single head is named `head`."""
    rows: list[dict[str, Any]] = []
    found = _Rows(items, None, [], [], rows)
    for at in walk(runs, ["negative"]):
        if at.records:
            for name, (projected, squared) in patched_heads(runs, at, sets).items():
                alone = sets[name][0] if name not in SETS else None
                found.add_heads("head" if alone else name, alone, at.step, projected, squared)
    tick(len(items))
    return {"heads": pa.Table.from_pylist(rows, schema=HEADS)}


@dataclass
class Opened:
    """Generator and judge of the stage, loaded when first needed."""

    backbone: Backbone
    plan: Plan
    items: Sequence[Item]
    judges: JudgeParams
    device: torch.device
    offload: str = "none"

    @cached_property
    def _generator(self) -> GraphGenerator:
        return GraphGenerator.load(
            locate(self.backbone, pipeline_parts(self.backbone)),
            Path(self.plan.config.adapter) if self.plan.config.adapter else None,
            device=str(self.device),
            backbone=self.backbone,
            guidance=self.plan.config.guidance,
            offload=self.offload,
            ahead=texts_of_runs(self.items),
        )

    @cached_property
    def _tokenizers(self) -> Tokenizers:
        return open_tokenizers(self.backbone)

    def runs(self, items: Sequence[Item]) -> Runs:
        """Runs of some items."""
        config, backbone = self.plan.config, self.backbone
        told = conditions(self._generator, self._tokenizers, items, backbone.max_sequence_length)
        return Runs(self._generator, told, [i.noise_seed for i in items], backbone.resolution, config.steps, config.batch_size)

    def maker(self) -> Make:
        """What fills a shard, `units` per item, with the three tables."""
        judge = open_judge(self.judges.headline, self.judges.judges[self.judges.headline], self.device)

        def make(shard: Shard, folder: Path, tick: Tick) -> None:
            own = self.items[shard.start // self.plan.units : shard.stop // self.plan.units]
            for name, table in intervene(self.runs(own), self.plan, own, judge, tick).items():
                write_table(table, folder / f"{name}.parquet")

        return make

    def head_maker(self, sets: Mapping[str, Sequence[Head]]) -> Make:
        """What fills a shard of items with `confirm_heads`."""

        def make(shard: Shard, folder: Path, tick: Tick) -> None:
            own = self.items[shard.start : shard.stop]
            for name, table in confirm_heads(self.runs(own), own, sets, tick).items():
                write_table(table, folder / f"{name}.parquet")

        return make
