"""What the instrument can tell apart: learning curves of groups of blocks, and the differences that they would show.

Groups: early, middle and late double-stream blocks (`maps.groups`), all of these, graph tokens without LoRA, and as many blocks as
the middle group drawn anew for each training seed. Each is trained with every number of triples (graphs of one), rank and
training seed to the largest number of steps; adapters of fewer steps are kept on the way, so the learning rate must be constant.
Each adapter samples the same val graphs of one triple under neutral prompts with g⁺, from the same noise.

- `direction_accuracy`: of classes whose negative swaps the roles, of images where the judge chooses; the outcome of
  `separated_pairs` and `smallest_difference` (`sgpipe/evaluation/power.py`, intervals over training seeds crossed with triples).
- `right`: the same figures of all classes and all images, a missing object counting as wrong.

Cost: groups × triples × ranks × seeds trainings (one rank for tokens alone), and as many × budgets of steps samplings. A training
whose outcomes are in `--state` is not made again, one that was killed goes on: run the same command again. `--minutes` ends between
two trainings, and figures are written of the training seeds that are complete. Run `python -m benchmarks.power` after
`dvc repro cache_latents cache_prompts cache_negative_prompts`; it writes `metrics/power.json`.
"""

import json
import math
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
import typer
from msgspec import structs

from sgpipe.arms.config import ArmOptions
from sgpipe.arms.kinds import KINDS
from sgpipe.arms.kinds.base import Sections
from sgpipe.arms.resolve import Arm, resolve
from sgpipe.backbones.denoiser import Denoiser
from sgpipe.backbones.families import pipeline_parts
from sgpipe.backbones.source import identity
from sgpipe.datasets.tables import NEGATIVES, TRIPLES, read_table
from sgpipe.errors import DataError, ParamsError, SgpipeError
from sgpipe.evaluation.calibration import choices
from sgpipe.evaluation.config import HEADLINE
from sgpipe.evaluation.crossed import Crossed
from sgpipe.evaluation.judge_factory import judge_identity, open_judge
from sgpipe.evaluation.judges import Judge
from sgpipe.evaluation.power import power_figures
from sgpipe.evaluation.sampling import open_generator
from sgpipe.evaluation.sampling_plan import EvaluationTriple, plan, read_evaluation_triples
from sgpipe.evaluation.statistics import Bootstrap, Floats
from sgpipe.params.blocks import Placement
from sgpipe.params.show import load_all
from sgpipe.runs.atomic import DIGITS, atomic_path, write_json
from sgpipe.runs.hashing import hashed, text_ids
from sgpipe.runs.processes import Processes, pick_device
from sgpipe.runs.state import config_hash
from sgpipe.training.examples import Data, Example, Sources, read_data
from sgpipe.training.fit import fit

MARGIN: Final = 0.03
"""Difference of accuracies that counts as none."""
TOKENS, RANDOM, ALL = "tokens", "random", "all"
OUTCOMES = pa.schema([("steps", pa.int64()), ("triple_id", pa.string()), ("seed", pa.int64()), ("chosen", pa.float64())])
"""Of a training: 1 where the judge chooses c⁺, 0 where c⁻, null where neither."""
_FACTS: Final = b"facts"
Numbers = Annotated[str, typer.Option(help="comma-separated")]


@dataclass(frozen=True)
class Cell:
    """One training."""

    group: str
    triples: int
    rank: int
    seed: int

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{self.group}-{self.triples}-{self.rank}-{self.seed}"


@dataclass(frozen=True)
class Design:
    """What is trained: every combination; tokens alone have no rank, and are trained once for all ranks."""

    groups: Mapping[str, tuple[int, ...] | None]
    """Blocks; None for tokens alone, empty for `drawn` of the blocks in `pool`, by the training seed."""
    steps: tuple[int, ...]
    triples: tuple[int, ...]
    ranks: tuple[int, ...]
    seeds: tuple[int, ...]
    pool: tuple[int, ...] = ()
    drawn: int = 0

    def cell(self, group: str, triples: int, rank: int, seed: int) -> Cell:
        """The training that stands for these."""
        return Cell(group, triples, 0 if self.groups[group] is None else rank, seed)

    def blocks(self, cell: Cell) -> tuple[int, ...]:
        """Those with LoRA."""
        named = self.groups[cell.group]
        if named == ():
            named = np.random.default_rng((cell.seed, 23)).choice(self.pool, self.drawn, replace=False).tolist()
        return tuple(sorted(named or ()))

    def cells(self) -> list[Cell]:
        """All trainings, those of one seed before the next seed's: figures of few seeds come first."""
        every = product(self.seeds, self.triples, self.ranks, self.groups)
        return list(dict.fromkeys(self.cell(group, triples, rank, seed) for seed, triples, rank, group in every))


def block_groups(sections: Mapping[str, Any]) -> dict[str, tuple[int, ...] | None]:
    """`Design.groups`, of the double-stream blocks that `maps.groups` names. Raises `ParamsError` for fewer than two."""
    count = sections["backbone"].double_blocks
    found = {name: group.blocks.resolve(count, f"maps.groups.{name}") for name, group in sections["maps"].groups.items()}
    named: dict[str, tuple[int, ...] | None] = {name: blocks for name, blocks in found.items() if blocks}
    if len(named) < 2:
        raise ParamsError(f"maps.groups: got {', '.join(found)}; at least two with double-stream blocks are compared")
    return named | {ALL: tuple(sorted({block for blocks in found.values() for block in blocks})), TOKENS: None, RANDOM: ()}


def subset(examples: Sequence[Example], count: int, repeated: int) -> tuple[Example, ...]:
    """`count` examples, of the classes by turns and within one by hash, so that more hold fewer; repeated to `repeated` or more.

    Raises `DataError` where there are fewer.
    """
    if count > len(examples):
        raise DataError(f"--triples: got {count}; there are {len(examples)} train triples with latents; raise curate.train")
    ranks = hashed(0, "power", text_ids([each.triple_id for each in examples])).tolist()
    turn: dict[str, int] = {}
    order: list[tuple[int, int, int]] = []
    for rank, index in sorted(zip(ranks, range(len(examples)), strict=True)):
        name = examples[index].predicate
        turn[name] = turn.get(name, -1) + 1
        order.append((turn[name], rank, index))
    chosen = tuple(examples[index] for _, _, index in sorted(order)[:count])
    return (chosen * -(-repeated // count))[:repeated]


def resolved(cell: Cell, design: Design, sections: Mapping[str, Any], data: Data) -> tuple[Arm, Data]:
    """The arm of a training and its data, of which an epoch is as many steps as divide all budgets."""
    unit, kind, options = reduce(math.gcd, design.steps), "graph_tokens", dict[str, Any]()
    if cell.group != TOKENS:
        kind, alpha = "graph_lora", sections["lora"].alpha / sections["lora"].rank * cell.rank
        options = {"blocks": Placement(design.blocks(cell)), "rank": cell.rank, "alpha": alpha}
    given = sections["train"]
    if given.optimiser.schedule != "constant":
        raise ParamsError(f"train.optimiser.schedule: got {given.optimiser.schedule}; adapters of fewer steps need constant")
    train = structs.replace(
        given, epochs=max(design.steps) // unit, keep_epochs=tuple(steps // unit for steps in design.steps), seed=cell.seed,
        validation=structs.replace(given.validation, every=max(design.steps), triples=1, images=0),
    )  # fmt: skip
    made: ArmOptions = KINDS[kind].options(kind=kind, **options)
    arm = resolve(cell.name, made, Sections.of({**sections, "train": train}))
    per_epoch = unit * train.batch_size * train.gradient_accumulation_steps
    return arm, replace(data, train=subset(data.train, cell.triples, per_epoch))


@dataclass(frozen=True)
class Bench:
    """What all trainings share."""

    sections: Mapping[str, Any]
    design: Design
    data: Data
    cases: Sequence[EvaluationTriple]
    sampling_seeds: tuple[int, ...]
    judge: Judge
    processes: Processes
    state: Path

    def who(self, arm: Arm) -> str:
        """A hash of all that outcomes of a training depend on."""
        backbone, evaluate, judges = (self.sections[name] for name in ("backbone", "evaluate", "judge"))
        return config_hash(
            {
                "arm": arm.plain(), "backbone": identity(backbone, pipeline_parts(backbone), resolution=backbone.resolution),
                "judge": judge_identity(judges.headline, judges.judges[judges.headline]), "steps": evaluate.steps,
                "cases": [case.triple_id for case in self.cases], "seeds": list(self.sampling_seeds),
                "train": sorted(each.triple_id for each in self.data.train),
            }
        )  # fmt: skip

    def outcomes(self, cell: Cell) -> pa.Table:
        """Rows of `OUTCOMES` of a training, made unless they are there; killed, it goes on from its last checkpoint.

        Raises `DataError` for rows of other parameters.
        """
        arm, data = resolved(cell, self.design, self.sections, self.data)
        path, folder, who = self.state / f"{cell.name}.parquet", self.state / cell.name, self.who(arm)
        if path.is_file():
            facts = json.loads((pq.read_metadata(path).metadata or {}).get(_FACTS, b"{}"))
            if facts.get("who") != who:
                raise DataError(f"{path}: of other parameters, data or models; remove it or give another --state")
            return pq.read_table(path, schema=OUTCOMES)
        mark = folder / "who"
        if folder.is_dir() and (not mark.is_file() or mark.read_text() != who):
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        mark.write_text(who)
        backbone = self.sections["backbone"]
        torch.compiler.reset()  # what is compiled for other blocks counts against the limit of recompilations
        fit(arm, Denoiser.load(backbone, self.processes.device), backbone, data, folder, self.processes, {})
        epochs = zip(arm.train.keep_epochs, sorted(self.design.steps), strict=True)
        table = pa.concat_tables(self._judged(steps, folder / f"epoch-{epoch}") for epoch, steps in epochs)
        with atomic_path(path) as temporary, pq.ParquetWriter(temporary, OUTCOMES, store_schema=False) as writer:
            writer.write_table(table)
            writer.add_key_value_metadata({_FACTS: json.dumps({"who": who})})
        shutil.rmtree(folder)
        return table

    def _judged(self, steps: int, adapter: Path) -> pa.Table:
        """What the judge sees in the images of an adapter."""
        backbone, evaluate = self.sections["backbone"], self.sections["evaluate"]
        requests = plan(self.cases, {HEADLINE: ("positive",)}, self.sampling_seeds, "graphs")
        generator = open_generator(backbone, adapter, self.processes.device, requests, evaluate.guidance)
        chosen = []
        for start in range(0, len(requests), evaluate.batch_size):
            part = requests[start : start + evaluate.batch_size]
            images = generator.sample(
                [each.text for each in part], [each.scene for each in part], [each.noise_seed for each in part],
                steps=evaluate.steps, size=backbone.resolution,
            )  # fmt: skip
            cases = [self.cases[(start + row) % len(self.cases)] for row in range(len(part))]
            scores = self.judge.scores(images, [(case.positive, case.negative) for case in cases]).astype(float)
            chosen += choices(scores[:, 0], scores[:, 1]).tolist()
        columns = {
            "steps": [steps] * len(requests), "triple_id": [each.triple_id for each in requests],
            "seed": [each.seed for each in requests], "chosen": pa.array(chosen, from_pandas=True),
        }  # fmt: skip
        return pa.table(columns, schema=OUTCOMES)

    def grid(self, table: pa.Table, steps: int) -> Floats:
        """Outcomes `[T, S]` of a training after so many steps, NaN where the judge does not choose."""
        rows = table.filter(pc.equal(table["steps"], steps))
        seeds = len(self.sampling_seeds)
        return rows["chosen"].to_numpy().astype(float).reshape(seeds, len(self.cases)).T

    def figures(self, made: Mapping[Cell, pa.Table], crossed: Crossed, power: float) -> dict[str, Any]:
        """`direction_accuracy` and `right`, each with the figures of `power_figures` over the seeds that all groups have."""
        design = self.design
        seeds = [seed for seed in design.seeds if all(cell in made for cell in design.cells() if cell.seed == seed)]
        if len(seeds) < 2:
            raise DataError(f"{self.state}: {len(seeds)} complete training seeds; a comparison needs two: run it again")
        swapped = np.array([case.kind == "swap" for case in self.cases])[:, None]
        cells: dict[str, dict[str, dict[str, list[Floats]]]] = {"direction_accuracy": {}, "right": {}}
        for steps, triples, rank in product(design.steps, design.triples, design.ranks):
            budget = f"{steps} steps, {triples} triples, rank {rank}"
            for group in design.groups:
                runs = [self.grid(made[design.cell(group, triples, rank, seed)], steps) for seed in seeds]
                cells["direction_accuracy"].setdefault(budget, {})[group] = [np.where(swapped, run, np.nan) for run in runs]
                cells["right"].setdefault(budget, {})[group] = [(run == 1).astype(float) for run in runs]
        return {name: power_figures(each, crossed, margin=MARGIN, power=power) for name, each in cells.items()} | {
            "training_seeds": len(seeds)
        }


def numbers(text: str, option: str) -> tuple[int, ...]:
    """Ascending positive numbers of an option. Raises `ParamsError` naming it."""
    try:
        found = tuple(sorted({int(each) for each in text.split(",")}))
    except ValueError:
        found = ()
    if not found or found[0] < 1:
        raise ParamsError(f"{option}: got {text!r}; valid: numbers from 1 up, separated by commas")
    return found


def trained(bench: Bench, minutes: float | None) -> Iterator[tuple[Cell, pa.Table]]:
    """Each training with its outcomes, until the time is over."""
    begun, cells = time.monotonic(), bench.design.cells()
    for number, cell in enumerate(cells, 1):
        if minutes is not None and time.monotonic() - begun > 60 * minutes:
            print(f"{number - 1} of {len(cells)} trainings after {minutes:g} minutes; run the same command again", file=sys.stderr)
            return
        yield cell, bench.outcomes(cell)
        print(f"{number} of {len(cells)}: {cell.name}", file=sys.stderr)


def main(
    params: Annotated[Path, typer.Option(help="parameter file")] = Path("params.yaml"),
    curated: Annotated[Path, typer.Option(help="folder of the triples")] = Path("outputs/curated"),
    negatives: Annotated[Path, typer.Option(help="table of the negatives")] = Path("outputs/negatives/negatives.parquet"),
    state: Annotated[Path, typer.Option(help="outcomes of finished trainings, checkpoints of the others")] = Path("outputs/power"),
    steps: Numbers = "50,100,200,400",
    triples: Numbers = "100,400,800",
    ranks: Numbers = "4,16",
    seeds: Annotated[int, typer.Option(min=2, help="training seeds")] = 5,
    sampling_seeds: Annotated[int, typer.Option(min=1, help="images of each val triple")] = 1,
    groups: Annotated[str | None, typer.Option(help="comma-separated; else all")] = None,
    minutes: Annotated[float | None, typer.Option(min=0, help="start no training after so many")] = None,
    out: Annotated[Path, typer.Option(help="metrics file")] = Path("metrics/power.json"),
) -> None:
    """Train, sample, judge and count what is not there yet."""
    sections = load_all(params)
    evaluate, judges, statistics = (sections[name] for name in ("evaluate", "judge", "statistics"))
    known = block_groups(sections)
    wanted = list(known) if groups is None else groups.split(",")
    if unknown := [name for name in wanted if name not in known]:
        raise ParamsError(f"--groups: got {unknown[0]!r}; valid: {', '.join(known)}")
    budgets = [numbers(*each) for each in ((steps, "--steps"), (triples, "--triples"), (ranks, "--ranks"))]
    design = Design({name: known[name] for name in wanted}, *budgets, tuple(range(seeds)))
    cases = read_evaluation_triples(
        read_table(curated / "triples.parquet", TRIPLES), read_table(negatives, NEGATIVES), evaluate.per_class
    )
    processes = Processes(0, 1, pick_device("auto", 0))
    judge = open_judge(judges.headline, judges.judges[judges.headline], processes.device)
    single = [case for case in cases if len(case.graph.triples) == 1]
    data = read_data(Sources(), sections["backbone"])
    data = replace(data, train=tuple(each for each in data.train if len(each.graph.triples) == 1))
    bench = Bench(sections, design, data, single, tuple(range(sampling_seeds)), judge, processes, state)
    made = dict(trained(bench, minutes))
    crossed = Crossed(Bootstrap(statistics.resamples, statistics.confidence, statistics.seed))
    found = bench.figures(made, crossed, statistics.power)
    headline = found.pop("direction_accuracy")
    asked = {"steps": design.steps, "triples": design.triples, "ranks": design.ranks, "groups": list(design.groups)}
    figures = {**headline, **found, "design": {**asked, "seeds": seeds, "val_triples": len(bench.cases)}}
    write_json(figures, out, DIGITS)
    print(
        f"{figures['training_seeds']} training seeds: {figures['separated_pairs']} pairs separated, "
        f"{figures['equivalent_pairs']} equivalent within ± {MARGIN}, {figures['undecided_pairs']} undecided; the smallest "
        f"difference found with {statistics.power:.0%} power is {figures['smallest_difference']}"
    )


if __name__ == "__main__":
    try:
        typer.run(main)
    except SgpipeError as error:
        sys.exit(f"error: {error}")
