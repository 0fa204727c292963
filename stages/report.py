"""One page that shows the whole experiment."""

import subprocess
import sys
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from sgpipe.backbones.config import Backbone
from sgpipe.evaluation.arms import read_metrics
from sgpipe.evaluation.config import Evaluate, JudgeParams, Statistics
from sgpipe.evaluation.judged import image_files, read_judged
from sgpipe.evaluation.sampling_plan import BASE
from sgpipe.params.load import read_section
from sgpipe.relations.predicates import phrase
from sgpipe.report import tables
from sgpipe.report.config import Report
from sgpipe.report.page import Image, Section, control_figure, headline_figure, render
from sgpipe.report.panels import file_uri, panels, pick
from sgpipe.runs.atomic import atomic_path, plain
from sgpipe.runs.command import run
from sgpipe.tracking.run import track

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
LIBRARIES = ("torch", "diffusers", "transformers", "peft", "open_clip_torch", "numpy", "scipy", "dvc")


def provenance(facts: dict[str, str]) -> dict[str, str]:
    """Commit and versions beside `facts`."""
    done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    changed = subprocess.run(
        ["git", "status", "--porcelain", "--", "sgpipe", "stages", "params.yaml"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    commit = done.stdout.strip() or "no git repository"
    if changed.stdout.strip():
        commit += ", with uncommitted changes"
    libraries = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    return {"commit": commit, **facts, "Python": sys.version.split()[0], "libraries": libraries}


def dvc_hashes(names: tuple[str, ...]) -> dict[str, str]:
    """MD5 of DVC-tracked inputs as their `.dvc` files state them."""
    found = {}
    for name in names:
        path = Path(f"{name}.dvc")
        if path.is_file():
            words = path.read_text(encoding="utf-8").split()
            found[f"{name} (DVC md5)"] = words[words.index("md5:") + 1] if "md5:" in words else "not stated"
    return found


def optional(name: str, title: str, paths: list[Path], command: str) -> Section | None:
    """A section that says what is missing, or None where nothing is."""
    absent = [str(path) for path in paths if not path.exists()]
    if not absent:
        return None
    return Section(name, title, missing=f"Not there: {', '.join(absent)}. `{command}` makes it.")


@app.command()
def main(
    params: Annotated[Path, typer.Option(help="parameter file")] = Path("params.yaml"),
    curated: Annotated[Path, typer.Option(help="folder of the triples")] = Path("outputs/curated"),
    negatives: Annotated[Path, typer.Option(help="table of the negatives")] = Path("outputs/negatives/negatives.parquet"),
    images: Annotated[Path, typer.Option(help="folder with a folder of images per arm")] = Path("outputs/images"),
    judged: Annotated[Path, typer.Option(help="folder of the verdicts")] = Path("outputs/judged"),
    evaluation: Annotated[Path, typer.Option(help="folder of the rows by class")] = Path("outputs/evaluation"),
    metrics: Annotated[Path, typer.Option(help="folder of the metrics")] = Path("metrics"),
    plots: Annotated[Path, typer.Option(help="folder of the figures")] = Path("plots"),
    out: Annotated[Path, typer.Option(help="the page")] = Path("outputs/report/index.html"),
) -> None:
    """Put metrics, figures and panels into one self-contained page; parts that were not run are named as missing."""
    config = read_section(params, "report", Report)
    evaluate = read_section(params, "evaluate", Evaluate)
    judges = read_section(params, "judge", JudgeParams)
    statistics = read_section(params, "statistics", Statistics)
    backbone = read_section(params, "backbone", Backbone)
    arms = {BASE: "none", **evaluate.adapters}
    inputs = [images, judged, evaluation]
    with track("report", {"report": config}, inputs, params) as recorded:
        found = read_metrics(metrics / "evaluation.json")
        rows = read_metrics(evaluation / "predicates.json")
        verdicts, qualified = read_judged(curated, negatives, judged, evaluate, judges, statistics, list(arms))
        files = image_files(images)
        known = {name: plain(asdict(each)) for name, each in qualified.by_class[judges.headline].items()}
        sections = [
            Section(
                "results", "Results",
                "Does a scene graph decide who stands where? Each figure stands beside the base model, an arm that is told in "
                "words, the adapter without a graph and with another triple's graph.",
                [tables.headline(found), tables.comparisons(found)], [headline_figure(found)],
            ),
            Section("judges", "Judges", tables=[tables.calibrations(found), tables.by_predicate(rows, known, arms)]),
            Section("sensitivity", "Sensitivity", tables=[tables.sensitivity(found)]),
        ]  # fmt: skip
        path = metrics / "ablation.json"
        sections.append(
            optional("ablation", "Ablation", [path], "dvc repro ablation")
            or Section("ablation", "Ablation", tables=[tables.ablation(read_metrics(path))])
        )
        graphs = [arm for arm, given in arms.items() if given == "graphs"]
        picked = pick(config, verdicts, qualified, graphs[0]) if graphs else {}
        shown = {kind: panels(cases, arms, files, verdicts, judges.headline) for kind, cases in picked.items()}
        intro = (
            f"Neutral prompt, seed {verdicts.seeds[0]}, the same noise in a row; below each image what judge "
            f"{judges.headline} says of it."
        )
        sections.append(Section("panels", "Images", intro, panels=shown))
        curves = [plots / "lora" / arm / "controls.csv" for arm in evaluate.adapters]
        sections.append(
            optional("training", "Training", curves, "dvc repro train_lora")
            or Section(
                "training", "Training", images=[control_figure(p, arm) for p, arm in zip(curves, evaluate.adapters, strict=True)]
            )
        )
        path = metrics / "probes.json"
        if (section := optional("probes", "Probes", [path], "dvc repro probe_table")) is None:
            of = read_metrics(path)
            section = Section(
                "probes",
                "Probes",
                "Selectivity is accuracy less that of the strongest control: what is read from the image and not from the words.",
                [tables.probes(of, "accuracy", "Accuracy"), tables.probes(of, "selectivity", "Selectivity")],
            )
        sections.append(section)
        sheets = {name: plots / "saliency" / f"{phrase(name).replace(' ', '_')}.png" for name in config.sheets}
        sections.append(
            optional("saliency", "Saliency", list(sheets.values()), "dvc repro saliency_sheets")
            or Section(
                "saliency",
                "Saliency",
                images=[
                    Image(f"Saliency by layer group of images of “{name}”", name, uri=file_uri(each, 1200))
                    for name, each in sheets.items()
                ],
            )
        )
        facts = {
            "backbone": f"{backbone.model} {backbone.revision or ''}".strip(),
            "configuration of the evaluation": found["config"],
            **{f"adapter of {arm}": str(file.facts["adapter"] or "none") for arm, file in files.items()},
            **{f"backbone of {arm}": str(file.facts["backbone"]) for arm, file in files.items()},
            **dvc_hashes(("data", "models")),
        }
        text = render(sections, provenance(facts), "Scene-graph conditioning: what was measured")
        with atomic_path(out) as temporary:
            temporary.write_text(text, encoding="utf-8")
        recorded.log_artifact(out)


if __name__ == "__main__":
    run(app)
