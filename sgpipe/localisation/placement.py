"""Where a relation can be written: one arm of LoRA and graph tokens at several places, trained at a small budget.

Two series of trainings, which have `all` with tokens at block 0 in common:

- LoRA on the blocks of one layer group, or of all groups (`all`); tokens are in the text from block 0 on.
- LoRA on the blocks of all groups; tokens join the text at a later block (`graph_tokens.enter`).

Each is repeated from several training seeds, and sampled under g⁺ and g⁻ on the triples of patching and ablation. Intervals cross
training seeds with triples (`Crossed`). At a large budget every placement solves an easy task; so curves end early, in eager mode.
Cost: a training for each placement and training seed, and two images for each triple and noise.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from dataclasses import replace as with_fields
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from msgspec.structs import replace

from sgpipe.arms.config import LoraOptions
from sgpipe.arms.generation import GraphGenerator
from sgpipe.arms.kinds.base import Sections
from sgpipe.arms.lora import target_modules
from sgpipe.arms.resolve import Arm, resolve
from sgpipe.backbones.base import Layout
from sgpipe.backbones.config import Backbone
from sgpipe.backbones.denoiser import Denoiser
from sgpipe.backbones.families import pipeline_parts
from sgpipe.backbones.source import identity, locate
from sgpipe.datasets.tables import write_table
from sgpipe.errors import ParamsError
from sgpipe.evaluation.calibration import choices
from sgpipe.evaluation.config import Evaluate, JudgeParams, Statistics
from sgpipe.evaluation.judge_factory import judge_identity, open_judge
from sgpipe.evaluation.judges import Judge
from sgpipe.evaluation.sweep import SWEEP, SweepSamples, sweep_figures
from sgpipe.localisation.pairs import Item
from sgpipe.localisation.table import ALL, ENTER, LORA
from sgpipe.params.blocks import Placement
from sgpipe.runs.processes import Processes
from sgpipe.runs.shards import Make, Shard, Tick, run_shards
from sgpipe.runs.state import config_hash
from sgpipe.training.config import Train
from sgpipe.training.examples import Data
from sgpipe.training.fit import fit, spread

_FILE: Final = "samples.parquet"


def placements(groups: Mapping[str, Sequence[int]], entries: Sequence[int], sections: Sections, layout: Layout) -> dict[str, Arm]:
    """Arms by name: `lora-<group>` for each layer group (places of blocks, single-stream ones last) and `all`, `enter-<block>` for
    each entry behind block 0.

    Raises `ParamsError` for a group of the name `all`, and for blocks, targets or entries that the model lacks.
    """
    if ALL in groups:
        raise ParamsError(f"maps.groups.{ALL}: the name stands for the blocks of all groups here; give the group another one")
    everywhere = sorted({block for blocks in groups.values() for block in blocks})
    count = sections.backbone.double_blocks

    def arm(name: str, blocks: Sequence[int], enter: int) -> Arm:
        options = LoraOptions(
            kind="graph_lora",
            blocks=Placement(tuple(block for block in blocks if block < count)),
            single_blocks=Placement(tuple(block - count for block in blocks if block >= count)),
        )
        made = resolve(name, options, with_fields(sections, graph_tokens=replace(sections.graph_tokens, enter=enter)))
        target_modules(layout, made.settings.lora)  # type: ignore[attr-defined]
        return made

    found = {f"{LORA}{name}": arm(f"{LORA}{name}", blocks, 0) for name, blocks in {**groups, ALL: everywhere}.items()}
    return found | {f"{ENTER}{block}": arm(f"{ENTER}{block}", everywhere, block) for block in sorted(set(entries)) if block}


def budgeted(train: Train, epochs: int) -> Train:
    """Section `train` of a short training: so many epochs, none kept, and blocks not fused, which takes as long as training."""
    return replace(train, epochs=epochs, keep_epochs=(), compile=False)


def limited(data: Data, triples: int | None) -> Data:
    """`triples` train triples, evenly spread over all, or all; no control losses are measured. Raises `ParamsError`."""
    if triples is not None and triples > len(data.train):
        raise ParamsError(f"--triples: got {triples}; there are {len(data.train)} train triples")
    train = data.train if triples is None else tuple(spread(data.train, triples))
    return with_fields(data, train=train, held_out=())


@dataclass(frozen=True)
class Trials:
    """Every placement from every training seed: what they are trained on, and how their images are judged."""

    arms: Mapping[str, Arm]
    seeds: Sequence[int]
    """Training seeds."""
    items: Sequence[Item]
    data: Data
    backbone: Backbone
    evaluate: Evaluate
    judges: JudgeParams
    processes: Processes
    offload: str = "none"

    @property
    def shards(self) -> list[Shard]:
        """One for each training; the first training seed of all placements comes first."""
        names = [f"{name}.{seed}" for seed in self.seeds for name in self.arms]
        return [Shard(name, place, place + 1) for place, name in enumerate(names)]

    def plain(self) -> dict[str, Any]:
        """All that images depend on, but for files: what a working state belongs to."""
        return {
            "arms": {name: arm.plain() for name, arm in self.arms.items()},
            "seeds": list(self.seeds),
            "triples": [each.triple_id for each in self.data.train],
            "items": [[item.case.triple_id, item.seed] for item in self.items],
            "backbone": config_hash(identity(self.backbone, pipeline_parts(self.backbone), resolution=self.backbone.resolution)),
            "evaluate": [self.evaluate.steps, self.evaluate.guidance, self.evaluate.batch_size],
            "judge": judge_identity(self.judges.headline, self.judges.judges[self.judges.headline]),
        }

    def run(self, state: Path) -> pa.Table:
        """Rows of `SWEEP`, trainings in order. What is finished stays in `state`, and a training goes on from its checkpoint."""
        run_shards(self.shards, state, self.processes, lambda: self._maker(state), "training")
        return pa.concat_tables(pq.read_table(state / shard.name / _FILE) for shard in self.shards).cast(SWEEP)

    def _maker(self, state: Path) -> Make:
        judge = open_judge(self.judges.headline, self.judges.judges[self.judges.headline], self.processes.device)
        alone = Processes(0, 1, self.processes.device)

        def make(shard: Shard, folder: Path, tick: Tick) -> None:
            name, _, number = shard.name.rpartition(".")
            arm, seed = self.arms[name], int(number)
            work = state / f".{shard.name}.training"
            denoiser = Denoiser.load(self.backbone, alone.device, self.offload)
            seeded = with_fields(arm, train=replace(arm.train, seed=seed))
            fit(seeded, denoiser, self.backbone, self.data, work, alone, {})
            del denoiser
            write_table(self._samples(work / "adapter", name, seed, judge), folder / _FILE)
            shutil.rmtree(work)
            tick(1)

        return make

    def _samples(self, adapter: Path, name: str, seed: int, judge: Judge) -> pa.Table:
        """What the judge says of images of g⁺ (`own`) and of g⁻ (`swapped`), under the neutral prompt."""
        cases = [item.case for item in self.items]
        prompts = [case.prompts["neutral"] for case in cases]
        graphs = {"own": [case.graph for case in cases], "swapped": [case.negative_graph for case in cases]}
        generator = GraphGenerator.load(
            locate(self.backbone, pipeline_parts(self.backbone)),
            adapter,
            device=str(self.processes.device),
            backbone=self.backbone,
            guidance=self.evaluate.guidance,
            offload=self.offload,
            ahead=(prompts, [graph for several in graphs.values() for graph in several]),
        )
        generator.batch = self.evaluate.batch_size
        tables = []
        for condition, given in graphs.items():
            noises = [item.noise_seed for item in self.items]
            images = generator.sample(prompts, given, noises, steps=self.evaluate.steps, size=self.backbone.resolution)
            scores = judge.scores(images, [(case.positive, case.negative) for case in cases])
            right = choices(scores[:, 0], scores[:, 1])
            columns = {
                "arm": [name] * len(cases),
                "training_seed": [seed] * len(cases),
                "triple_id": [case.triple_id for case in cases],
                "predicate": [case.predicate for case in cases],
                "sampling_seed": [item.seed for item in self.items],
                "condition": [condition] * len(cases),
                "present": np.isfinite(scores[:, 0]),
                "decided": np.isfinite(right),
                "right": pa.array(right == 1, mask=np.isnan(right)),
            }
            tables.append(pa.table(columns, schema=SWEEP))
        return pa.concat_tables(tables)


def placement_samples(table: pa.Table, arms: Mapping[str, Arm], judge: str, statistics: Statistics) -> SweepSamples:
    """The rows of `Trials.run` with what their figures need."""
    facts = {
        "arms": {name: {"prompt": "neutral", "losses": {}} for name in arms},
        "judge": judge,
        "statistics": {name: getattr(statistics, name) for name in ("resamples", "confidence", "seed")},
        "training_seeds": len(table["training_seed"].unique()),
        "experiments": {},
    }
    return SweepSamples(table, facts)


def placement_figures(samples: SweepSamples, arms: Mapping[str, Arm], triples: int) -> dict[str, Any]:
    """metrics/placement.json: `lora` by layer group and `enter` by block, each `direction_accuracy` of g⁺ with an interval over
    training seeds crossed with triples, by training seed, `swap_follow_rate`, `objects_present`; and the `budget`, of so many train
    triples.

    With a single training seed the interval is over triples alone, and says nothing of another training.
    """
    found = sweep_figures(samples)

    def own(name: str) -> dict[str, Any]:
        return {key: value for key, value in found["arms"][name].items() if key != "prompt"}

    lora, enter = ({name.removeprefix(kind): own(name) for name in arms if name.startswith(kind)} for kind in (LORA, ENTER))
    everywhere = arms[f"{LORA}{ALL}"]
    train = everywhere.train
    return {
        "lora": lora,
        "enter": {"0": lora[ALL], **enter},
        "budget": {
            "train_triples": triples,
            "steps": train.steps_after(train.epochs, triples),
            "batch_size": train.batch_size,
            "learning_rate": train.optimiser.learning_rate,
            "precision": train.precision,
            "rank": everywhere.settings.lora.rank,  # type: ignore[attr-defined]
        },
        "training_seeds": sorted({seed for seeds in samples.arms.values() for seed in seeds}),
        "triples": len(samples.triples),
        "seeds": len(samples.seeds),
        "judge": samples.facts["judge"],
    }
