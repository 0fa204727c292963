"""`sgpipe report`: what is made of metrics for readers."""

from pathlib import Path
from typing import Annotated

import typer

from sgpipe.errors import SgpipeError

app = typer.Typer(no_args_is_help=True, help="Tables for readers, from the metrics.")


@app.callback()
def _several() -> None:
    """Keeps the commands named while there is one."""


@app.command("readme-table")
def readme_table(
    evaluation: Annotated[Path, typer.Option(help="metrics of the evaluation")] = Path(
        "metrics/evaluation.json"
    ),
    ablation: Annotated[Path, typer.Option(help="metrics of the ablation; left out if absent")] = Path(
        "metrics/ablation.json"
    ),
    readme: Annotated[Path, typer.Option(help="file with the markers")] = Path("README.md"),
    check: Annotated[
        bool, typer.Option("--check", help="change nothing, fail if the table is another one")
    ] = False,
) -> None:
    """Write the first table of the README between its markers."""
    from sgpipe.report.readme import headline_table, replace_table

    if not readme.is_file():
        raise SgpipeError(f"{readme}: no such file; run from the repository root or give --readme")
    before = readme.read_text(encoding="utf-8")
    after = replace_table(before, headline_table(evaluation, ablation))
    if check and after != before:
        raise SgpipeError(f"{readme}: its table is not that of the metrics; run `sgpipe report readme-table`")
    if after != before:
        readme.write_text(after, encoding="utf-8")
    print(f"{readme}: " + ("written" if after != before else "already in step"))
