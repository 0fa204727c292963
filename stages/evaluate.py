"""The tables of the evaluation, from stored images and verdicts: nothing is sampled or judged."""

from pathlib import Path
from typing import Annotated

import typer

from sgpipe.evaluation.arms import arm_figures, read_metrics
from sgpipe.evaluation.config import Evaluate, JudgeParams, Statistics
from sgpipe.evaluation.judged import image_files, read_ground_truth, read_judged
from sgpipe.evaluation.sampling_plan import BASE
from sgpipe.evaluation.summary import evaluation_figures
from sgpipe.params.load import read_section, to_builtins
from sgpipe.runs.atomic import DIGITS, new_folder, write_json
from sgpipe.runs.command import run, write_metrics
from sgpipe.tracking.run import track

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    params: Annotated[Path, typer.Option(help="parameter file")] = Path("params.yaml"),
    curated: Annotated[Path, typer.Option(help="folder of the triples")] = Path("outputs/curated"),
    negatives: Annotated[Path, typer.Option(help="table of the negatives")] = Path("outputs/negatives/negatives.parquet"),
    images: Annotated[Path, typer.Option(help="folder with a folder of images per arm")] = Path("outputs/images"),
    judged: Annotated[Path, typer.Option(help="folder of the verdicts")] = Path("outputs/judged"),
    trained: Annotated[Path, typer.Option(help="folder of the metrics of training, a file per arm")] = Path("metrics/lora"),
    out: Annotated[Path, typer.Option(help="folder of the rows by class")] = Path("outputs/evaluation"),
    metrics: Annotated[Path, typer.Option(help="metrics file")] = Path("metrics/evaluation.json"),
    arms: Annotated[Path, typer.Option(help="metrics file of the arms side by side")] = Path("metrics/lora.json"),
) -> None:
    """Count, with calibrations, intervals and tests."""
    evaluate = read_section(params, "evaluate", Evaluate)
    judges = read_section(params, "judge", JudgeParams)
    statistics = read_section(params, "statistics", Statistics)
    sections = {"evaluate": evaluate, "judge": judges, "statistics": statistics}
    inputs = [curated / "triples.parquet", negatives, images, judged]
    with track("evaluate", sections, inputs, params) as recorded:
        losses = {arm: read_metrics(trained / f"{arm}.json") for arm in evaluate.adapters}
        named = [BASE, *evaluate.adapters]
        verdicts, qualified = read_judged(curated, negatives, judged, evaluate, judges, statistics, named)
        found, rows = evaluation_figures(verdicts, qualified, image_files(images))
        found["ground_truth"] = read_ground_truth(curated, judged)
        beside = {"arms": arm_figures(found["arms"], losses)}
        with new_folder(out) as folder:
            write_json(rows, folder / "predicates.json", DIGITS)
        plain = {name: to_builtins(section) for name, section in sections.items()}
        write_metrics(found, metrics, plain)
        write_metrics(beside, arms, plain)
        recorded.log_metrics(found)
        recorded.log_metrics(beside)


if __name__ == "__main__":
    run(app)
