"""How a stage is started as a command, and how it writes its metrics."""

import errno
import sys
from pathlib import Path
from typing import Any

import typer

from sgpipe.errors import SgpipeError
from sgpipe.runs.atomic import write_json
from sgpipe.runs.state import config_hash, die_with_parent

_OF_THE_MACHINE = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS))


def run(app: typer.Typer) -> None:
    """Run a typer app; the process dies with its parent.

    Errors of this project, a full disk and a file that may not be read or written end in one line and exit code 2.
    """
    die_with_parent()
    try:
        app()
    except SgpipeError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in _OF_THE_MACHINE:
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(
            f"error: {where}{error.strerror or error}; mend this and run the same command again",
            file=sys.stderr,
        )
        sys.exit(2)


def write_metrics(values: dict[str, Any], path: Path, config: Any) -> None:
    """Write a metrics file: `values` plus `config`, the hash of the resolved configuration (plain values) they come from."""
    write_json({**values, "config": config_hash(config)}, path)
