"""The `sgpipe` command. Heavy modules are imported by the commands that need them."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from sgpipe.arms.cli import compose, generate
from sgpipe.datasets.cli import app as data_app
from sgpipe.doctor.cli import doctor
from sgpipe.errors import SgpipeError
from sgpipe.fetch.cli import app as fetch_app
from sgpipe.localisation.cli import localise, placement
from sgpipe.playground.cli import playground
from sgpipe.report.adapter_cli import app as adapter_app
from sgpipe.report.cli import app as report_app
from sgpipe.report.maps_cli import maps
from sgpipe.report.study_cli import study
from sgpipe.runs.command import call
from sgpipe.sgdiff.cli import app as sgdiff_app

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Structure-aware scene-graph conditioning of diffusion transformers.",
)


def _group(name: str, about: str) -> typer.Typer:
    group = typer.Typer(no_args_is_help=True, help=about)
    app.add_typer(group, name=name)
    return group


params_app = _group("params", "Read and check params.yaml.")
pipeline_app = _group("pipeline", "What changed since a stage ran.")
state_app = _group("state", "Working states of stages that were interrupted.")
tracking_app = _group("tracking", "MLflow, as a view of git and DVC.")
app.add_typer(adapter_app, name="adapter")
app.add_typer(data_app, name="data")
app.add_typer(fetch_app, name="fetch")
app.add_typer(report_app, name="report")
app.add_typer(sgdiff_app, name="sgdiff")
app.command("doctor")(doctor)
app.command("generate")(generate)
app.command("playground")(playground)
app.command("compose")(compose)
app.command("maps")(maps)
app.command("localise")(localise)
app.command("placement")(placement)
app.command("study")(study)

AsJson = Annotated[bool, typer.Option("--json", help="print it as JSON")]
ParamsPath = Annotated[Path, typer.Option("--params", help="parameter file")]


@params_app.command("reference")
def params_reference(params: ParamsPath = Path("params.yaml")) -> None:
    """Print every knob with value, default, bounds and meaning as Markdown; docs/parameters.md is this."""
    from sgpipe.params.reference import reference

    print(reference(params), end="")


@params_app.command("show")
def params_show(
    params: ParamsPath = Path("params.yaml"), section: Annotated[str | None, typer.Argument(help="print this section only")] = None
) -> None:
    """Print the parameters in resolved form: defaults filled in, block ranges spelled out."""
    import yaml

    from sgpipe.params.show import resolved

    shown = resolved(params)
    if section is not None:
        if section not in shown:
            raise SgpipeError(f"section {section!r} is unknown; valid: {', '.join(shown)}")
        shown = {section: shown[section]}
    print(yaml.safe_dump(shown, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120), end="")


@app.command("preset")
def preset(
    name: Annotated[str | None, typer.Argument(help="which one; without a name all are listed")] = None,
    apply: Annotated[bool, typer.Option("--apply", help="write its values into the parameter file")] = False,
    settings: Annotated[
        bool, typer.Option("--settings", help="print the changes as options of `dvc exp run`: -S key=value …")
    ] = False,
    params: ParamsPath = Path("params.yaml"),
) -> None:
    """Print what a preset would change, knob by knob, or change it; comments and order of the file stay."""
    from rich.console import Console

    from sgpipe import presets

    folder = params.parent / presets.FOLDER
    known = presets.available(folder)
    if apply and settings:
        raise SgpipeError("--apply writes the changes and --settings prints them for a command; give one of the two")
    if name is None and apply:
        raise SgpipeError(f"--apply needs a preset; valid: {', '.join(known)}")
    if name is None:
        return print(*(f"{found}: {about}" for found, about in known.items()), sep="\n")
    path = presets.preset_path(folder, name)
    made = presets.apply(params, path) if apply else presets.changes(params, path)
    if settings:
        return print(*(f"-S {each}" for each in presets.settings(made)))
    if not made:
        return print(f"{params} has the values of {name} already")
    Console().print(presets.table(made))
    print(f"{len(made)} knobs " + (f"written to {params}" if apply else "differ; --apply writes them"))


@pipeline_app.command("why")
def pipeline_why(stage: Annotated[str, typer.Argument(help="a stage of dvc.yaml")], as_json: AsJson = False) -> None:
    """Say which module, library, parameter or input of a stage changed since it ran."""
    from sgpipe.runs.pipeline import why

    found = why(stage, Path())
    if as_json:
        return print(json.dumps(found))
    for name, changes in found.items():
        print(f"{name}:" if stage in (name, name.partition("@")[0]) else f"{name}, which comes before:")
        print(*(f"  {line}" for line in changes or ["nothing changed since it ran"]), sep="\n")


@app.command("dag")
def dag_command() -> None:
    """Print the stages of dvc.yaml and who waits for whom."""
    from sgpipe.runs.pipeline import dag

    print("\n".join(dag(Path())))


@state_app.command("list")
def state_list(as_json: AsJson = False) -> None:
    """List the working states of stages that did not end: their age, size and whether one is running."""
    from sgpipe.runs.garbage import describe, states

    found = states(Path())
    if as_json:
        shown = [{"folder": str(each.folder), "bytes": each.size, "seconds": each.age, "running": each.running} for each in found]
        return print(json.dumps(shown))
    for state in found:
        print(describe(state))


@state_app.command("gc")
def state_gc(days: Annotated[float, typer.Option(min=0, help="remove what nothing has written to for so many days")] = 14) -> None:
    """Remove working states that were abandoned, never one of a running stage."""
    from sgpipe.runs.garbage import collect, describe

    removed = collect(Path(), days)
    for state in removed:
        print(f"removed {describe(state)}")
    print(f"{len(removed)} removed, {sum(state.size for state in removed) / 2**20:.1f} MiB")


@tracking_app.command("sync")
def tracking_sync(params: ParamsPath = Path("params.yaml")) -> None:
    """Rebuild the MLflow runs from DVC's experiments and the git history. Safe to repeat."""
    from sgpipe.params.load import read_section
    from sgpipe.runs.config import Tracking
    from sgpipe.runs.progress import keeps
    from sgpipe.tracking.sync import sync

    keeps("stopped; the commits that were synchronised stay: run the same command again for the others")

    done = sync(Path.cwd(), read_section(params, "tracking", Tracking).experiment)
    print(
        f"{done.created} runs created, {done.joined} joined to their commit, {done.known} already there, "
        f"{done.closed} of killed stages closed"
    )


@tracking_app.command("ui")
def tracking_ui(
    port: Annotated[int, typer.Option(help="port on localhost")] = 5000, params: ParamsPath = Path("params.yaml")
) -> None:
    """Print the address of the runs and serve MLflow's pages on localhost until interrupted, unless a server has them."""
    from sgpipe.params.load import read_section
    from sgpipe.runs.config import Tracking
    from sgpipe.tracking.store import open_store, runs_page, tracking_uri

    uri = tracking_uri(Path.cwd())
    _, experiment_id = open_store(Path.cwd(), read_section(params, "tracking", Tracking).experiment)
    served = uri.startswith(("http:", "https:"))
    print(f"runs: {runs_page(uri if served else f'http://127.0.0.1:{port}', experiment_id)}", flush=True)
    if served:
        return
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri, "--host", "127.0.0.1", "--port", str(port)]
    os.execv(sys.executable, command)


def main() -> None:
    """Entry point: an error that a user can mend ends in one line and exit code 2."""
    call(app)


if __name__ == "__main__":
    main()
