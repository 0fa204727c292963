"""Epochs of training compared on the same triples and seeds."""

from pathlib import Path

from sgpipe.evaluation.ablation import ablation_figures, checkpoint_arm
from sgpipe.evaluation.config import Ablation, Evaluate, JudgeParams, Statistics, check_runs
from sgpipe.evaluation.judged import image_files, read_judged
from sgpipe.params.load import read_params, to_builtins
from sgpipe.runs.command import run, write_metrics
from sgpipe.runs.progress import progress
from sgpipe.tracking.recorder import record
from stages import METRICS, NEGATIVES_FILE, TRIPLES_FILE


def main() -> None:
    """Count each epoch of `ablation.epochs`, and test each against the one before it."""
    config, evaluate, judges, statistics = read_params(Ablation, Evaluate, JudgeParams, Statistics)
    check_runs(config.runs, evaluate.adapters)
    sections = {"ablation": config, "evaluate": evaluate, "judge": judges, "statistics": statistics}
    images, judged = Path("outputs/images_by_epoch"), Path("outputs/judged_by_epoch")
    with record("ablation", sections, [TRIPLES_FILE, NEGATIVES_FILE, images, judged]) as recorded:
        named = [checkpoint_arm(each, epoch) for each in config.runs for epoch in config.epochs]
        verdicts, qualified = read_judged(TRIPLES_FILE.parent, NEGATIVES_FILE, judged, evaluate, judges, statistics, named)
        with progress(len(config.epochs), "ablation", "epoch"):
            found = ablation_figures(verdicts, qualified, image_files(images), config.epochs, config.runs)
        write_metrics(found, METRICS / "ablation.json", to_builtins(sections), recorded)


if __name__ == "__main__":
    run(main)
