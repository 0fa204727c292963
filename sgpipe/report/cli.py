"""`sgpipe report`: what is made of metrics for readers."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from sgpipe.errors import SgpipeError

app = typer.Typer(no_args_is_help=True, help="Tables for readers, from the metrics.")
Evaluation = Annotated[Path, typer.Option(help="metrics of the evaluation")]


@app.command("readme-table")
def readme_table(
    evaluation: Evaluation = Path("metrics/evaluation.json"),
    sweep: Annotated[Path, typer.Option(help="metrics of a sweep; left out if absent")] = Path("metrics/sweep.json"),
    joint: Annotated[Path, typer.Option(help="metrics of `sgpipe report localisation`; left out if absent")] = Path(
        "metrics/localisation_table.json"
    ),
    readme: Annotated[Path, typer.Option(help="file with the markers")] = Path("README.md"),
    check: Annotated[bool, typer.Option("--check", help="change nothing, fail if the table is another one")] = False,
) -> None:
    """Write the tables of the README between their markers."""
    from sgpipe.evaluation.arms import read_metrics
    from sgpipe.report.tables import begin, replace_table, short_headline
    from sgpipe.report.tables import localisation as joint_table
    from sgpipe.report.tables import sweep as sweep_table
    from sgpipe.report.written import EVALUATION, as_written

    if not readme.is_file():
        raise SgpipeError(f"{readme}: no such file; run from the repository root or give --readme")
    before = readme.read_text(encoding="utf-8")
    found = read_metrics(evaluation)
    with as_written(evaluation, *EVALUATION):
        table = short_headline(found).markdown()
    after = replace_table(before, "evaluation", table)
    if sweep.is_file():
        found = read_metrics(sweep)
        with as_written(sweep, "metrics of a sweep", "sgpipe report sweep"):
            table = sweep_table(found).markdown()
        after = replace_table(after, "sweep", table)
    if joint.is_file() and begin("localisation") in after:
        found = read_metrics(joint)
        with as_written(joint, "table of localisation", "sgpipe report localisation"):
            table = replace(joint_table(found), caption="", note=found["sentence"]).markdown()
        after = replace_table(after, "localisation", table)
    if after == before:
        print(f"{readme}: already in step")
    elif check:
        raise SgpipeError(f"{readme}: its tables are not those of the metrics; run `sgpipe report readme-table`")
    else:
        readme.write_text(after, encoding="utf-8")
        print(f"{readme}: written")


@app.command("localisation")
def localisation_command(
    metrics: Annotated[Path, typer.Option(help="folder of metrics: probes, word_probes, localisation, placement")] = Path(
        "metrics"
    ),
    outputs: Annotated[Path, typer.Option(help="folder with word_probes and localisation, for the ranks of blocks")] = Path(
        "outputs"
    ),
    figure: Annotated[Path, typer.Option(help="PNG to write: every method by block")] = Path("docs/images/localisation.png"),
    resamples: Annotated[int, typer.Option(min=100, help="bootstrap resamples of triples")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="seed of the resamples")] = 0,
) -> None:
    """Write metrics/localisation_table.json, where relations are read, written and used by block, and a figure; print the table.

    What was not measured is left out.
    """
    from sgpipe.attention_maps.config import Maps
    from sgpipe.backbones.config import Backbone
    from sgpipe.localisation.block_figure import draw_blocks, panels
    from sgpipe.params.load import read_params
    from sgpipe.report.localisation import PARTS, layer_groups, localisation_table, measured
    from sgpipe.report.tables import localisation as joint_table
    from sgpipe.runs.atomic import DIGITS, write_json

    if not any((metrics / f"{name}.json").is_file() for name in PARTS):
        raise SgpipeError(f"{metrics}: none of {', '.join(f'{name}.json' for name in PARTS)} is there; run `dvc repro localise`")
    backbone, maps = read_params(Backbone, Maps)
    groups = layer_groups(backbone, maps)
    parts = measured(metrics, groups)
    found = localisation_table(metrics, outputs, groups, resamples, seed)
    write_json(found, metrics / "localisation_table.json", DIGITS)
    if shown := panels(groups, *parts[1:]):
        draw_blocks(shown, groups, backbone.double_blocks, backbone.double_blocks + backbone.single_blocks, figure)
    print(joint_table(found).markdown())


@app.command("headline")
def headline(
    evaluation: Evaluation = Path("metrics/evaluation.json"),
    report: Annotated[Path, typer.Option(help="page with everything")] = Path("outputs/report/index.html"),
    as_json: Annotated[bool, typer.Option("--json", help="print the rows as numbers, and the page, as JSON")] = False,
) -> None:
    """Print the headline table and where the report is: what `make repro` ends with."""
    from rich.console import Console
    from rich.table import Table

    from sgpipe.evaluation.arms import read_metrics
    from sgpipe.report.tables import headline_rows, short_headline
    from sgpipe.report.written import EVALUATION, as_written

    metrics = read_metrics(evaluation)
    with as_written(evaluation, *EVALUATION):
        found = short_headline(metrics)
        rows = headline_rows(metrics)
    if as_json:
        if not report.is_file():
            raise SgpipeError(f"{report}: no such file; run `dvc repro report`")
        judge = metrics["headline"]["judge"]
        return print(json.dumps({"judge": judge, "rows": rows, "note": found.note, "report": str(report)}, ensure_ascii=False))
    shown = Table(box=None, pad_edge=False)
    for index, name in enumerate(found.head):
        shown.add_column(name, justify="right" if index else "left", no_wrap=True)
    for row in found.rows:
        shown.add_row(*row)
    console = Console(width=max(112, Console().width), highlight=False, markup=False)
    console.print(shown)
    console.print(f"\n{found.note}\n")
    if not report.is_file():
        raise SgpipeError(f"{report}: no such file; run `dvc repro report`")
    print(f"report: {report}")


@app.command("sheet")
def sheet_command(
    images: Annotated[Path, typer.Option(help="folder of the arms' images")] = Path("outputs/images"),
    triples: Annotated[Path, typer.Option(help="curated triples")] = Path("outputs/curated/triples.parquet"),
    seed: Annotated[int, typer.Option(min=0, help="seed of the choice of triples")] = 0,
    count: Annotated[int, typer.Option(min=1, help="how many")] = 10,
    out: Annotated[Path, typer.Option(help="image file to write")] = Path("docs/images/graph.png"),
) -> None:
    """Write the README's sheet: random val triples by the base, under g⁺ and under g⁻."""
    from sgpipe.report.panels import sample_sheet

    sample_sheet(images, triples, seed, count, out)
    print(out)


@app.command("sweep")
def sweep_command(
    names: Annotated[list[str] | None, typer.Argument(help="DVC experiments of one sweep, by name or pattern")] = None,
    beside: Annotated[
        list[str] | None, typer.Option(help="NAME=PATTERN: arm `graph` of experiments with another recipe, in a row of that name")
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(help="training seeds, as 0,1,2, that every arm must have; else those there are")
    ] = None,
    source: Annotated[
        Path | None, typer.Option("--from", help="samples that an earlier call wrote, in place of experiments")
    ] = None,
    out: Annotated[Path, typer.Option(help="metrics file to write; the samples are written beside it as .parquet")] = Path(
        "metrics/sweep.json"
    ),
) -> None:
    """Pool experiments that differ in their training seed, print their table, write its figures and samples."""
    from sgpipe.errors import ParamsError
    from sgpipe.evaluation.sweep import Experiment, SweepSamples, sweep_figures, sweep_samples
    from sgpipe.report.sweep import named_experiments, read_experiment
    from sgpipe.report.tables import sweep as sweep_table
    from sgpipe.runs.atomic import DIGITS, write_json
    from sgpipe.runs.progress import through

    def read(patterns: list[str]) -> list[Experiment]:
        items = named_experiments(Path.cwd(), patterns)
        return [read_experiment(Path.cwd(), item) for item in through(items, "experiments", "experiment")]

    try:
        wanted = None if seeds is None else [int(seed) for seed in seeds.split(",")]
    except ValueError:
        raise ParamsError(f"--seeds {seeds}: write whole numbers with commas between, as 0,1,2") from None
    if (source is None) == (not names) or (source is not None and beside):
        raise ParamsError(
            f"report sweep: got names {names or 'none'}, --beside {beside or 'none'}, --from {source or 'none'}; give names of "
            "experiments (and --beside), or --from FILE alone"
        )
    others = {}
    for given in beside or []:
        name, equals, pattern = given.partition("=")
        if not equals:
            raise ParamsError(f"--beside {given}: write NAME=PATTERN, as predecessor='predecessor*'")
        others[name] = read([pattern])
    samples = sweep_samples(read(names), others) if names else SweepSamples.read(source or out)
    found = sweep_figures(samples, wanted)
    if names:
        samples.write(out.with_suffix(".parquet"))
    write_json(found, out, DIGITS)
    print(sweep_table(found).markdown())


@app.command("experiments")
def experiments_command(
    names: Annotated[list[str] | None, typer.Argument(help="DVC experiments, by name or pattern; all by default")] = None,
    out: Annotated[Path, typer.Option(help="folder to write: an index, and a copy of each report")] = Path("outputs/experiments"),
) -> None:
    """Link the reports of experiments: an index with headline figures and differing parameters, and a way from each to the next."""
    from sgpipe.report.experiments import experiment_report, link_reports, workspace_report
    from sgpipe.report.sweep import named_experiments
    from sgpipe.runs.progress import through

    items = named_experiments(Path.cwd(), names or ["*"])
    found, before = workspace_report(Path.cwd()), SgpipeError("no experiment was read")
    for item in through(items, "reports", "experiment"):
        try:
            found.append(experiment_report(Path.cwd(), item))
        except SgpipeError as error:
            before = error
            print(f"warning: {error}; left out", file=sys.stderr)
    if not found:
        raise before
    print(link_reports(found, out))
