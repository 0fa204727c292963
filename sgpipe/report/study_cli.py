"""`sgpipe study`, as the command line takes it."""

import json
from pathlib import Path
from typing import Annotated

import typer


def study(
    model: Annotated[Path, typer.Option(help="pipeline folder")] = Path("models/mini-flux"),
    adapter: Annotated[Path | None, typer.Option(help="folder of an adapter, which is given graphs beside neutral prompts")] = None,
    one_sample: Annotated[
        Path | None, typer.Option(help="folder of an adapter trained on one triple: what it does to the graphs of others")
    ] = None,
    known: Annotated[
        Path | None, typer.Option(help="table of curated triples: prompts with other names are reported and not sampled")
    ] = None,
    out: Annotated[Path, typer.Option(help="folder to write: study.json, claims.png, a panel per category")] = Path(
        "outputs/study"
    ),
    evaluation: Annotated[Path, typer.Option(help="metrics that say which judge is qualified")] = Path("metrics/evaluation.json"),
    params: Annotated[Path, typer.Option(help="parameter file: who judges, which classes, statistics")] = Path("params.yaml"),
    seeds: Annotated[int, typer.Option(min=1, help="images per prompt")] = 3,
    steps: Annotated[int, typer.Option(min=1, help="Euler steps")] = 4,
    size: Annotated[int, typer.Option(min=16, help="side in pixels")] = 64,
    guidance: Annotated[float | None, typer.Option(min=0, help="guidance scale")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps")] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="print what was sampled as JSON")] = False,
) -> None:
    """Sample the seed document's prompts by category, judge them, and put its claims in numbers with intervals; stopped, the same
    command goes on.
    """
    import sgpipe
    from sgpipe.arms.generation import backbone_for
    from sgpipe.arms.sizes import check_size
    from sgpipe.evaluation.config import JudgeParams, Statistics
    from sgpipe.evaluation.statistics import Bootstrap
    from sgpipe.graphs.config import Curate
    from sgpipe.params.load import read_section
    from sgpipe.report.study_run import plan_study, qualified_judge, run_study
    from sgpipe.runs.processes import Processes, pick_device
    from sgpipe.runs.quiet import late_bars
    from sgpipe.runs.shards import shared_state
    from sgpipe.runs.state import fingerprint

    late_bars()
    processes = Processes(0, 1, pick_device(device, 0, "--device"))
    backbone = backbone_for(model, adapter or one_sample)
    check_size(backbone, size)
    plan = plan_study(backbone, adapter, one_sample, known, seeds=range(seeds), steps=steps, size=size, guidance=guidance)
    statistics, judges = read_section(params, "statistics", Statistics), read_section(params, "judge", JudgeParams)
    predicates = read_section(params, "curate", Curate).predicates
    code = Path(sgpipe.__file__).parents[1]
    digest = fingerprint("sgpipe.report.study_run", plan.plain(), plan.adapters, code, processes.device_kind)
    with shared_state("study", digest, Path(), processes) as state:
        who = qualified_judge(evaluation, judges, statistics, predicates, processes)
        bootstrap = Bootstrap(statistics.resamples, statistics.confidence, statistics.seed)
        found = run_study(plan, who, bootstrap, state, processes, out)
    unsampled = sum(map(len, plan.not_sampled.values()))
    if as_json:
        said = {"out": str(out), "sampled": found["prompts"], "not_sampled": unsampled, "judge": found["judge"]}
        return print(json.dumps(said))
    for given, count in found["prompts"].items():
        print(f"{given}: {count} prompts × {seeds} seeds")
    print(
        f"{unsampled} prompts were not sampled, since they name what is not known; judge: {found['judge'] or 'none is qualified'}"
    )
    print(out / "study.json", out / "claims.png", sep="\n")
