"""The seed document's study of an arm: its prompts sampled and judged, its claims as numbers with intervals."""

from pathlib import Path
from typing import Annotated

import typer

from sgpipe.backbones.config import Backbone
from sgpipe.errors import ParamsError
from sgpipe.evaluation.config import Evaluate, JudgeParams, Statistics, Study
from sgpipe.evaluation.statistics import Bootstrap
from sgpipe.graphs.config import Curate
from sgpipe.params.load import read_params, to_builtins
from sgpipe.report.study_run import plan_study, qualified_judge, run_study
from sgpipe.runs.command import run, write_metrics
from sgpipe.runs.config import Compute
from sgpipe.runs.processes import start
from stages import LORA, METRICS, TRIPLES_FILE
from stages._stage import working

OUT = Path("outputs/study")


def main(arm: Annotated[str, typer.Option(help="which of `study.arms`")]) -> None:
    """Sample, judge and count; killed at any point, the same command goes on."""
    config, backbone, judges, statistics = read_params(Study, Backbone, JudgeParams, Statistics)
    evaluate, curate, compute = read_params(Evaluate, Curate, Compute)
    if arm not in config.arms:
        raise ParamsError(f"--arm: got {arm}; valid: {', '.join(config.arms) or 'none'}, as study.arms has them")
    processes = start(compute)
    if processes.count > 1:
        raise ParamsError(f"compute.launch: got {processes.count} processes; study is of one")
    plan = plan_study(
        backbone, LORA / arm / "adapter", Path(config.one_sample) if config.one_sample else None, TRIPLES_FILE,
        seeds=config.seeds, steps=evaluate.steps, size=backbone.resolution, guidance=evaluate.guidance,
    )  # fmt: skip
    evaluation = METRICS / "evaluation.json"
    settings = {**plan.plain(), "judge": to_builtins(judges), "statistics": to_builtins(statistics)}
    sections = {"study": config, "judge": judges, "statistics": statistics}
    inputs = [*plan.adapters, TRIPLES_FILE, evaluation]
    with working(f"study@{arm}", settings, sections, inputs, processes) as (state, recorded):
        who = qualified_judge(evaluation, judges, statistics, curate.predicates, processes)
        bootstrap = Bootstrap(statistics.resamples, statistics.confidence, statistics.seed)
        found = run_study(plan, who, bootstrap, state, processes, OUT / arm)
        write_metrics(found, METRICS / "study" / f"{arm}.json", settings, recorded)


if __name__ == "__main__":
    run(main)
