"""`sgpipe study`, as the command line takes it."""

import json
from pathlib import Path
from typing import Annotated

import typer

from sgpipe.errors import DataError, ModelError, ParamsError


def study(
    model: Annotated[Path, typer.Option(help="pipeline folder")] = Path("models/mini-flux"),
    adapter: Annotated[Path | None, typer.Option(help="folder of an adapter, which is given graphs beside neutral prompts")] = None,
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
) -> None:
    """Sample the seed document's prompts by category, judge them, and put its claims in numbers with intervals."""
    import pyarrow.parquet as pq

    from sgpipe.arms.adapter import read_about
    from sgpipe.arms.generation import GraphGenerator, backbone_for
    from sgpipe.evaluation.arms import read_metrics
    from sgpipe.evaluation.config import JudgeParams, Statistics
    from sgpipe.evaluation.judge_factory import open_judge
    from sgpipe.evaluation.statistics import Bootstrap
    from sgpipe.evaluation.study import study_items
    from sgpipe.graphs.config import Curate
    from sgpipe.params.load import read_section
    from sgpipe.report import study as own
    from sgpipe.runs.atomic import DIGITS, defined, new_folder, write_json
    from sgpipe.runs.processes import pick_device

    where = pick_device(device, 0, "--device")
    trained = None if adapter is None else own.trained_on(read_about(adapter))
    if adapter is not None and trained is None:
        raise ModelError(f"{adapter}: does not state what it was trained on; train it again")
    names = None if trained is None else trained["names"]
    if known is not None:
        if not known.is_file():
            raise DataError(f"--known {known}: no such file; give a table of curated triples, as outputs/curated/triples.parquet")
        names = sorted({name for row in pq.read_table(known, columns=["objects"])["objects"].to_pylist() for name in row})
    items, left = own.split_known(study_items(), names)
    if not items:
        raise ParamsError(f"study: no prompt has all its names among the {len(names or [])} known; give another --known")
    statistics, judges = read_section(params, "statistics", Statistics), read_section(params, "judge", JudgeParams)
    bootstrap = Bootstrap(statistics.resamples, statistics.confidence, statistics.seed)
    asked = own.requests(items, trained)
    rows = [row for several in asked.values() for row in several]
    ahead = ([prompt for _, prompt, _ in rows], [graph for _, _, graph in rows])
    backbone = backbone_for(model, adapter)
    generator = GraphGenerator.load(model, adapter, device=str(where), backbone=backbone, guidance=guidance, ahead=ahead)
    sampled = own.sample(generator, asked, range(seeds), steps, size)
    scores, who = {}, None
    if evaluation.is_file():
        about = read_metrics(evaluation)["judges"].get(judges.headline, {"ground_truth_accuracy": None, "refused": []})
        if (about["ground_truth_accuracy"] or 0) >= statistics.threshold:
            who = judges.headline
            classes = [name for name in read_section(params, "curate", Curate).predicates if name not in about["refused"]]
            scores = own.judged(open_judge(who, judges.judges[who], where), sampled, classes)
    found = own.claims(sampled, scores, bootstrap)
    categories = list(dict.fromkeys(item.category for item in study_items()))
    with new_folder(out) as folder:
        if found:
            own.claims_figure(found, folder / "claims.png")
        for category in categories:
            own.panel(sampled, category, 0, 10, folder / f"{category.replace(' ', '_')}.png")
        counts = {given: len(of) for given, of in sampled.items.items()}
        values = {
            "claims": found,
            "judge": who,
            "names_checked": names is not None,
            "not_sampled": left,
            "prompts": counts,
            "seeds": seeds,
        }
        write_json(defined(values, out / "study.json"), folder / "study.json", DIGITS)
    unsampled = sum(map(len, left.values()))
    print(json.dumps({"out": str(out), "sampled": counts, "not_sampled": unsampled, "judge": who}))
