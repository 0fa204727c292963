"""One page that shows the whole experiment."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from sgpipe.attention_maps.config import Maps
from sgpipe.backbones.config import Backbone
from sgpipe.evaluation.arms import read_metrics
from sgpipe.evaluation.config import Evaluate, JudgeParams, Statistics
from sgpipe.evaluation.judged import image_files, read_judged
from sgpipe.evaluation.sampling_plan import BASE
from sgpipe.params.load import read_params
from sgpipe.relations.predicates import phrase
from sgpipe.report import tables
from sgpipe.report.config import Report
from sgpipe.report.localisation import layer_groups, localisation_table
from sgpipe.report.page import Image, Section, control_figure, epochs_figure, headline_figure, render, training_figure
from sgpipe.report.panels import ABOUT, file_uri, panels, pick
from sgpipe.runs.atomic import atomic_path, plain
from sgpipe.runs.command import run
from sgpipe.tracking.git import said
from sgpipe.tracking.recorder import record
from stages import EVALUATION, IMAGES, JUDGED, METRICS, NEGATIVES_FILE, PLOTS, TRIPLES_FILE

PAGE = Path("outputs/report/index.html")
LIBRARIES = ("torch", "diffusers", "transformers", "peft", "open_clip_torch", "numpy", "scipy", "dvc")


def provenance(facts: Mapping[str, str]) -> dict[str, str]:
    """Commit, `facts`, MD5 of DVC-tracked inputs as their `.dvc` files state them, and versions."""
    commit = said(Path(), "rev-parse", "HEAD") or "no git repository"
    if said(Path(), "status", "--porcelain", "--", "sgpipe", "stages", "params.yaml"):
        commit += ", with uncommitted changes"
    tracked = {}
    for name in ("data", "models"):
        if (path := Path(f"{name}.dvc")).is_file():
            outs = yaml.safe_load(path.read_text(encoding="utf-8"))["outs"]
            tracked[f"{name} (DVC md5)"] = str(outs[0].get("md5", "not stated"))
    libraries = ", ".join(f"{each} {version(each)}" for each in LIBRARIES)
    return {"commit": commit, **facts, **tracked, "Python": sys.version.split()[0], "libraries": libraries}


def later_sections(arms: Sequence[str], sheets: Sequence[str]) -> list[Section]:
    """Training, probes and saliency, as far as they were run."""
    curves = {arm: PLOTS / "lora" / arm / "controls.csv" for arm in arms}
    probes = METRICS / "probes.json"
    drawn = {name: PLOTS / "saliency" / f"{phrase(name).replace(' ', '_')}.png" for name in sheets}
    if (training := missing("training", "Training", list(curves.values()), "dvc repro train_lora")) is None:
        trained = [arm for arm, path in curves.items() if path.read_text(encoding="utf-8").strip()]  # others are external
        plotted = [control_figure(curves[arm], arm) for arm in trained]
        losses = {arm: PLOTS / "lora" / arm / "training.csv" for arm in trained}
        plotted += [training_figure(path, arm) for arm, path in losses.items() if path.is_file()]
        training = Section("training", "Training", images=plotted)
    found = [training]
    if (section := missing("probes", "Probes", [probes], "dvc repro probe_table")) is None:
        of = read_metrics(probes)
        intro = "Selectivity is accuracy less that of the strongest control: what is read from the image and not from the words."
        shown = [tables.probes(of, "accuracy", "Accuracy"), tables.probes(of, "selectivity", "Selectivity")]
        section = Section("probes", "Probes", intro, shown)
    if (saliency := missing("saliency", "Saliency", list(drawn.values()), "dvc repro saliency_sheets")) is None:
        about = "Saliency by layer group of images of “{}”".format
        sheet_images = [Image(about(name), name, uri=file_uri(path, 1200), predicate=name) for name, path in drawn.items()]
        saliency = Section("saliency", "Saliency", images=sheet_images)
    return [*found, section, saliency]


def ablation_section(found: Mapping[str, Any]) -> Section:
    """Epochs as a table and as a learning curve."""
    return Section("ablation", "Ablation", tables=[tables.ablation(found)], images=[epochs_figure(found)])


def localisation_section(statistics: Statistics) -> list[Section]:
    """Where the relation is read, written and used; no section where nothing was localised."""
    if not (METRICS / "localisation.json").is_file():
        return []
    groups = layer_groups(*read_params(Backbone, Maps))
    table = tables.localisation(localisation_table(METRICS, IMAGES.parent, groups, statistics.resamples, statistics.seed))
    intro = "More always speaks for the group: the relation can be read there, is moved by what is patched there, or is lost."
    return [Section("localisation", "Localisation", intro, [table])]


def missing(name: str, title: str, paths: Sequence[Path], command: str) -> Section | None:
    """A section that says what is missing, or None where nothing is."""
    absent = [str(path) for path in paths if not path.exists()]
    return Section(name, title, missing=f"Not there: {', '.join(absent)}. `{command}` makes it.") if absent else None


def main() -> None:
    """Put metrics, figures and panels into one self-contained page; parts that were not run are named as missing."""
    config, evaluate, judges, statistics = read_params(Report, Evaluate, JudgeParams, Statistics)
    backbone, arms = read_params(Backbone), {BASE: "none", **evaluate.adapters}
    with record("report", {"report": config}, [IMAGES, JUDGED, EVALUATION]) as recorded:
        found: dict[str, Any] = read_metrics(METRICS / "evaluation.json")
        rows, ablation = read_metrics(EVALUATION / "predicates.json"), METRICS / "ablation.json"
        curated = TRIPLES_FILE.parent
        verdicts, qualified = read_judged(curated, NEGATIVES_FILE, JUDGED, evaluate, judges, statistics, list(arms))
        files = image_files(IMAGES)
        known = {name: plain(asdict(each)) for name, each in qualified.by_class[judges.headline].items()}
        graphs = [arm for arm, given in arms.items() if given == "graphs"]
        picked = pick(config, verdicts, qualified, graphs[0]) if graphs else {}
        shown = {kind: panels(cases, arms, files, verdicts, judges.headline) for kind, cases in picked.items()}
        sections = [
            Section(
                "results", "Results",
                "Does a scene graph decide who stands where? Each figure stands beside the base model, an arm that is told in "
                "words, the adapter without a graph and with another triple's graph.",
                [tables.headline(found), tables.comparisons(found)], [headline_figure(found)],
            ),
            Section("judges", "Judges", tables=[tables.calibrations(found), tables.by_predicate(rows, known, arms)]),
            Section("sensitivity", "Sensitivity", tables=[tables.sensitivity(found), tables.diversity(found)]),
            Section("quality", "Quality", tables=[tables.quality(found), tables.published_quality()]),
            missing("ablation", "Ablation", [ablation], "dvc repro ablation")
            or ablation_section(read_metrics(ablation)),
            Section(
                "panels", "Images",
                f"Neutral prompt, seed {verdicts.seeds[0]}, the same noise in a row; below each image what judge "
                f"{judges.headline} says of it.",
                panels=shown, about=ABOUT,
            ),
            *localisation_section(statistics),
            *later_sections(list(evaluate.adapters), config.sheets),
        ]  # fmt: skip
        facts = {
            "backbone": f"{backbone.model} {backbone.revision or ''}".strip(),
            "configuration of the evaluation": found["config"],
            **{f"adapter of {arm}": str(file.facts["adapter"] or "none") for arm, file in files.items()},
            **{f"backbone of {arm}": str(file.facts["backbone"]) for arm, file in files.items()},
        }
        text = render(sections, provenance(facts), "Scene-graph conditioning: what was measured")
        with atomic_path(PAGE) as temporary:
            temporary.write_text(text, encoding="utf-8")
        recorded.log_artifact(PAGE)


if __name__ == "__main__":
    run(main)
