"""The study from prompts to figures, for the command and for the stage."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sgpipe.arms.adapter import read_about
from sgpipe.arms.coverage import TRAINED_ON
from sgpipe.arms.generation import GraphGenerator
from sgpipe.backbones.config import Backbone
from sgpipe.backbones.families import pipeline_parts
from sgpipe.backbones.source import identity, locate
from sgpipe.datasets.given import given_table
from sgpipe.datasets.tables import TRIPLES
from sgpipe.errors import ModelError, ParamsError
from sgpipe.evaluation.arms import read_metrics
from sgpipe.evaluation.config import JudgeParams, Statistics
from sgpipe.evaluation.judge_factory import open_judge
from sgpipe.evaluation.judges import Judge
from sgpipe.evaluation.statistics import Bootstrap
from sgpipe.evaluation.study import study_items
from sgpipe.report.study import (
    Rows,
    claims,
    claims_figure,
    claims_of_one_sample,
    one_sample_requests,
    panel,
    requests,
    sample,
    split_known,
)
from sgpipe.report.written import EVALUATION, as_written
from sgpipe.runs.atomic import DIGITS, defined, new_folder, write_json
from sgpipe.runs.processes import Processes


@dataclass(frozen=True)
class Plan:
    """What is sampled: by the base and an adapter (`asked`), and by an adapter of one training sample (`of_one`)."""

    backbone: Backbone
    adapter: Path | None
    one_sample: Path | None
    asked: dict[str, Rows]
    of_one: dict[str, Rows]
    not_sampled: dict[str, dict[str, list[str]]]
    names_checked: bool
    seeds: Sequence[int]
    steps: int
    size: int
    guidance: float | None

    @property
    def adapters(self) -> list[Path]:
        """Folders that are read."""
        return [path for path in (self.adapter, self.one_sample) if path is not None]

    def plain(self) -> dict[str, Any]:
        """All that the images depend on besides the adapters, the code and the device."""
        rows = {
            given: [(prompt, None if graph is None else repr(graph)) for _, prompt, graph in asked]
            for given, asked in (*self.asked.items(), *self.of_one.items())
        }
        who = identity(self.backbone, pipeline_parts(self.backbone), resolution=self.size)
        sampled = {"seeds": list(self.seeds), "steps": self.steps, "size": self.size, "guidance": self.guidance}
        return {"rows": rows, "backbone": who, **sampled}


def trained_on(adapter: Path) -> dict[str, Any]:
    """Names and predicates of an adapter's training. Raises `ModelError` for one that does not state them."""
    found = read_about(adapter).get(TRAINED_ON)
    if found is None:
        raise ModelError(f"{adapter}: does not state what it was trained on; train it again")
    return dict(found)


def plan_study(
    backbone: Backbone, adapter: Path | None, one_sample: Path | None, known: Path | None,
    *, seeds: Sequence[int], steps: int, size: int, guidance: float | None,
) -> Plan:  # fmt: skip
    """Choose the prompts whose names are all in table `known`, else in the adapter's training, else all of them.

    Raises `DataError`, `ModelError` or `ParamsError` for inputs that are not there, or leave no prompt.
    """
    trained = None if adapter is None else trained_on(adapter)
    names = None if trained is None else trained["names"]
    if known is not None:
        table = given_table("--known", known, TRIPLES, "outputs/curated/triples.parquet", ["objects"])
        names = sorted({name for row in table["objects"].to_pylist() for name in row or ()})
    items, left = split_known(study_items(), names)
    if not items:
        raise ParamsError(f"study: no prompt has all its names among the {len(names or [])} known; give another --known")
    if one_sample is not None:
        trained_on(one_sample)
    of_one = {} if one_sample is None else one_sample_requests(items)
    return Plan(
        backbone, adapter, one_sample, requests(items, trained), of_one, left, names is not None, seeds, steps, size, guidance
    )


def qualified_judge(
    evaluation: Path, judges: JudgeParams, statistics: Statistics, predicates: Sequence[str], processes: Processes
) -> tuple[str | None, Judge | None, list[str]]:
    """The headline judge's name, itself, and the classes that it may judge; nobody where the evaluation does not qualify it."""
    about: dict[str, Any] = {"ground_truth_accuracy": None, "refused": []}
    qualified, refused = False, list[str]()
    if evaluation.is_file():
        found = read_metrics(evaluation)
        with as_written(evaluation, *EVALUATION):
            about = found["judges"].get(judges.headline, about)
            qualified = (about["ground_truth_accuracy"] or 0) >= statistics.threshold
            refused = list(about["refused"])
    if not qualified:
        return None, None, []
    judge = open_judge(judges.headline, judges.judges[judges.headline], processes.device)
    return judges.headline, judge, [name for name in predicates if name not in refused]


def run_study(
    plan: Plan, who: tuple[str | None, Judge | None, list[str]], bootstrap: Bootstrap, state: Path, processes: Processes, out: Path
) -> dict[str, Any]:
    """Sample in shards of `state`, judge, and write `out`: study.json, claims.png and a panel per category. Returns study.json."""
    asked = (("images", plan.adapter, plan.asked), ("one", plan.one_sample, plan.of_one))
    studies = {}
    folder = locate(plan.backbone, pipeline_parts(plan.backbone))
    for name, adapter, rows in asked:
        flat = [row for several in rows.values() for row in several]
        ahead = ([prompt for _, prompt, _ in flat], [graph for _, _, graph in flat])
        load = partial(
            GraphGenerator.load, folder, adapter, device=str(processes.device), backbone=plan.backbone,
            guidance=plan.guidance, ahead=ahead,
        )  # fmt: skip
        studies[name] = sample(load, rows, plan.seeds, plan.steps, plan.size, state, processes, name)
    judged_by, judge, classes = who
    found = claims(studies["images"], judge, classes, bootstrap)
    if plan.one_sample is not None:
        found["one_sample"] = claims_of_one_sample(studies["one"], trained_on(plan.one_sample), judge, classes, bootstrap)
    both = studies["images"]
    both.items |= studies["one"].items
    both.images |= studies["one"].images
    values = {
        "claims": found,
        "judge": judged_by,
        "names_checked": plan.names_checked,
        "not_sampled": plan.not_sampled,
        "prompts": {given: len(of) for given, of in both.items.items()},
        "seeds": len(plan.seeds),
    }
    values = defined(values, out / "study.json")
    with new_folder(out) as new:
        if found:
            claims_figure(found, new / "claims.png")
        for category in dict.fromkeys(item.category for item in study_items()):
            panel(both, category, 0, 10, new / f"{category.replace(' ', '_')}.png")
        write_json(values, new / "study.json", DIGITS)
    return values
