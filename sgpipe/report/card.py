"""An adapter as it is published: a copy of its folder whose card has the figures of an evaluation."""

import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult

from sgpipe.arms.adapter import backbone_of, read_about
from sgpipe.arms.card import CARD, card_text
from sgpipe.backbones.families import family_of_backbone
from sgpipe.errors import DataError
from sgpipe.evaluation.arms import read_metrics
from sgpipe.report.tables import conditions, short_headline, with_interval
from sgpipe.report.written import EVALUATION, as_written
from sgpipe.runs.atomic import new_folder


def results(arm: str, found: dict[str, Any]) -> list[EvalResult]:
    """The arm's direction accuracy under each prompt and graph, with its interval in words, as a card's YAML holds them."""
    judge, name = found["headline"]["judge"], "direction_accuracy"
    return [
        EvalResult(
            task_type="text-to-image",
            task_name="images of scene graphs",
            dataset_type="val-triples",
            dataset_name=f"{found['triples']} val triples × {found['seeds']} seeds",
            dataset_split="val",
            dataset_config=f"{prompt}-{graph}",
            metric_type=name,
            metric_name=f"direction accuracy of g⁺ {with_interval(row, name)}; {prompt} prompt, graph {graph}, judge {judge}",
            metric_value=row[name],
        )
        for own, prompt, graph, row in conditions(found)
        if own == arm and row[name] is not None
    ]


def completed_card(folder: Path, metrics: Path) -> str:
    """The adapter's card with figures. Raises `DataError` for an evaluation without this arm, or of another training of it."""
    about = read_about(folder)
    arm, found = about["arm"], read_metrics(metrics)
    with as_written(metrics, *EVALUATION):
        known = list(found["arms"])
    if arm not in known:
        raise DataError(f"{metrics}: has no arm {arm!r}; valid: {', '.join(known) or 'none, run `dvc repro evaluate`'}")
    trained = metrics.parent / "lora" / f"{arm}.json"
    if trained.is_file():
        own = read_metrics(trained)
        with as_written(trained, "metrics of a training", f"dvc repro train_lora@{arm}"):
            same = own["config"] == about.get("config")
        if not same:
            raise DataError(
                f"{metrics}: is of another training of {arm} than {folder} ({trained} has another `config`); "
                "run `dvc repro evaluate`"
            )
    with as_written(metrics, *EVALUATION):
        kept = {name: of for name, of in found["arms"].items() if name in (arm, "base")}
        table, figures = short_headline({**found, "arms": kept}), results(arm, found)
    return card_text(about, family_of_backbone(backbone_of(about, folder)).pipeline, figures, table.markdown())


def publish(folder: Path, metrics: Path, out: Path) -> None:
    """Copy an adapter's folder to `out`, its card completed; what was there is replaced at once."""
    text = completed_card(folder, metrics)
    with new_folder(out) as made:
        shutil.copytree(folder, made, dirs_exist_ok=True)
        (made / CARD).write_text(text, encoding="utf-8")
