"""How a stage is started as a command, and how it writes its metrics."""

import errno
import math
import sys
from pathlib import Path
from typing import Any

import typer

from sgpipe.errors import SgpipeError
from sgpipe.runs.atomic import DIGITS, write_json
from sgpipe.runs.code import begin_stage, check_unchanged
from sgpipe.runs.state import config_hash, die_with_parent

_OF_THE_MACHINE = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS))


def _checked(app: typer.Typer) -> None:
    """Run `app` between the checks of a stage's code; what is no stage, and a call for help, runs without."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is None or not spec.name.startswith("stages.") or "--help" in sys.argv:
        return app()
    begin_stage(spec.name, Path())
    try:
        app()
    except SystemExit as ended:
        if not ended.code:
            check_unchanged()
        raise


def run(app: typer.Typer) -> None:
    """Run a stage's typer app; the process dies with its parent, and its code is compared at its start and end.

    Errors of this project, a full disk and a file that may not be read or written end in one line and exit code 2.
    """
    die_with_parent()
    try:
        _checked(app)
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


def _defined(value: Any, where: str, undefined: list[str]) -> Any:
    if isinstance(value, dict):
        return {key: _defined(item, f"{where}.{key}", undefined) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_defined(item, f"{where}[{i}]", undefined) for i, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        undefined.append(where.lstrip("."))
        return None
    return value


def write_metrics(values: dict[str, Any], path: Path, config: Any) -> None:
    """Write a metrics file: `values` plus `config`, the hash of the resolved configuration (plain values) they come from.

    Floats get `DIGITS` significant digits. A figure that is not finite is undefined: it becomes null, with a warning on stderr.
    """
    undefined: list[str] = []
    found = _defined(values, "", undefined)
    if undefined:
        print(f"warning: {path}: undefined, written as null: {', '.join(undefined)}", file=sys.stderr)
    write_json({**found, "config": config_hash(config)}, path, DIGITS)
