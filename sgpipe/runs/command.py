"""How a stage is started as a command, and how it writes its metrics."""

import sys
from pathlib import Path
from typing import Any

import typer

from sgpipe.errors import SgpipeError
from sgpipe.runs.atomic import write_json
from sgpipe.runs.state import config_hash, die_with_parent


def run(app: typer.Typer) -> None:
    """Run a typer app: errors of this project end in one line and exit code 2; the process dies with its parent."""
    die_with_parent()
    try:
        app()
    except SgpipeError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def write_metrics(values: dict[str, Any], path: Path, config: Any) -> None:
    """Write a metrics file: `values` plus `config`, the hash of the resolved configuration (plain values) they come from."""
    write_json({**values, "config": config_hash(config)}, path)
