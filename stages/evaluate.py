"""The tables of the evaluation, from stored images and verdicts: nothing is sampled or judged."""

from sgpipe.datasets.tables import read_table
from sgpipe.evaluation.arms import arm_figures, read_metrics
from sgpipe.evaluation.config import HEADLINE, Evaluate, JudgeParams, Statistics
from sgpipe.evaluation.diversity import diversity_figures
from sgpipe.evaluation.graph_figures import graph_figures
from sgpipe.evaluation.groups import image_groups
from sgpipe.evaluation.judged import image_files, read_features, read_ground_truth, read_judged
from sgpipe.evaluation.quality import quality_figures
from sgpipe.evaluation.samples import QUALITY
from sgpipe.evaluation.sampling_plan import BASE
from sgpipe.evaluation.summary import Summary, evaluation_figures
from sgpipe.params.load import read_params, to_builtins
from sgpipe.runs.atomic import DIGITS, new_folder, write_json
from sgpipe.runs.command import run, write_metrics
from sgpipe.runs.progress import progress
from sgpipe.tracking.recorder import record
from stages import EVALUATION, IMAGES, JUDGED, METRICS, NEGATIVES_FILE, TRIPLES_FILE


def main() -> None:
    """Count, with calibrations, intervals and tests."""
    evaluate, judges, statistics = read_params(Evaluate, JudgeParams, Statistics)
    sections = {"evaluate": evaluate, "judge": judges, "statistics": statistics}
    with record("evaluate", sections, [TRIPLES_FILE, NEGATIVES_FILE, IMAGES, JUDGED]) as recorded:
        losses = {arm: read_metrics(METRICS / "lora" / f"{arm}.json") for arm in evaluate.adapters}
        named, curated = [BASE, *evaluate.adapters], TRIPLES_FILE.parent
        verdicts, qualified = read_judged(curated, NEGATIVES_FILE, JUDGED, evaluate, judges, statistics, named)
        files, features = image_files(IMAGES), read_features(JUDGED)
        seen_by = verdicts.conditions(judges.headline)
        by_class = sum(each.prompt == HEADLINE for each in seen_by)
        with progress(2 * len(seen_by) + by_class, "evaluation", "condition"):
            found, rows = evaluation_figures(verdicts, qualified, files)
            found["diversity"] = diversity_figures(verdicts, qualified, files, features)
        found["ground_truth"] = read_ground_truth(curated, JUDGED)
        seen = read_table(JUDGED / "quality.parquet", QUALITY)
        found["quality"] = quality_figures(seen, found["arms"], found["diversity"], statistics.seed)
        if groups := image_groups(verdicts, qualified, losses):
            found["groups"] = groups
        if any(len(case.graph.triples) > 1 for case in verdicts.cases):
            every, _ = read_judged(curated, NEGATIVES_FILE, JUDGED, evaluate, judges, statistics, named, with_seen=True)
            found["graphs"] = graph_figures(Summary(every, qualified))
        found["feature_judge"] = None if features is None else features.judge
        with new_folder(EVALUATION) as folder:
            write_json(rows, folder / "predicates.json", DIGITS)
        for figures, name in ((found, "evaluation"), ({"arms": arm_figures(found["arms"], losses)}, "lora")):
            write_metrics(figures, METRICS / f"{name}.json", to_builtins(sections), recorded)


if __name__ == "__main__":
    run(main)
