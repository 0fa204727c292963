"""Epochs of training compared on the same triples and seeds."""

from pathlib import Path
from typing import Annotated

import typer

from sgpipe.evaluation.ablation import ablation_figures, checkpoint_arm
from sgpipe.evaluation.config import Ablation, Evaluate, JudgeParams, Statistics, check_runs
from sgpipe.evaluation.judged import image_files, read_judged
from sgpipe.params.load import read_section, to_builtins
from sgpipe.runs.command import run, write_metrics
from sgpipe.tracking.run import track

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    params: Annotated[Path, typer.Option(help="parameter file")] = Path("params.yaml"),
    curated: Annotated[Path, typer.Option(help="folder of the triples")] = Path("outputs/curated"),
    negatives: Annotated[Path, typer.Option(help="table of the negatives")] = Path("outputs/negatives/negatives.parquet"),
    images: Annotated[Path, typer.Option(help="folder with a folder of images per checkpoint")] = Path("outputs/images_by_epoch"),
    judged: Annotated[Path, typer.Option(help="folder of the verdicts")] = Path("outputs/judged_by_epoch"),
    metrics: Annotated[Path, typer.Option(help="metrics file")] = Path("metrics/ablation.json"),
) -> None:
    """Count each epoch of `ablation.epochs`, and test each against the one before it."""
    config = read_section(params, "ablation", Ablation)
    evaluate = read_section(params, "evaluate", Evaluate)
    check_runs(config.runs, evaluate.adapters)
    judges = read_section(params, "judge", JudgeParams)
    statistics = read_section(params, "statistics", Statistics)
    sections = {"ablation": config, "evaluate": evaluate, "judge": judges, "statistics": statistics}
    inputs = [curated / "triples.parquet", negatives, images, judged]
    with track("ablation", sections, inputs, params) as recorded:
        named = [checkpoint_arm(each, epoch) for each in config.runs for epoch in config.epochs]
        verdicts, qualified = read_judged(curated, negatives, judged, evaluate, judges, statistics, named)
        found = ablation_figures(verdicts, qualified, image_files(images), config.epochs, config.runs)
        write_metrics(found, metrics, {name: to_builtins(section) for name, section in sections.items()})
        recorded.log_metrics(found)


if __name__ == "__main__":
    run(app)
