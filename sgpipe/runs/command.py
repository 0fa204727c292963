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


def is_out_of_memory(error: BaseException) -> bool:
    """The device or the machine has no memory left: Python's, CUDA's and the CPU allocator's ways of saying so."""
    text = str(error).lower()
    allocator = "out of memory" in text or "can't allocate memory" in text
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and allocator)


def one_line(error: Exception) -> str | None:
    """What to print for an error that a user can mend; None for any other, which is a fault of the program."""
    if isinstance(error, SgpipeError):
        return str(error)
    if is_out_of_memory(error):
        said = " ".join(str(error).split()).partition(". ")[0] or "out of memory"
        return (
            f"{said}; lower the batch_size of the stage's section (or backbone.resolution), set lora.checkpointing to true or "
            "compute.offload to model; `sgpipe doctor` prints a plan of the memory"
        )
    if isinstance(error, OSError) and error.errno in _OF_THE_MACHINE:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}; mend this and run the same command again"
    return None


def call(app: typer.Typer) -> None:
    """Run a typer app; an error that a user can mend ends in one line and exit code 2, of a stage as of the command."""
    try:
        app()
    except Exception as error:
        said = one_line(error)
        if said is None:
            raise
        print(f"error: {said}", file=sys.stderr)
        sys.exit(2)


def run(app: typer.Typer) -> None:
    """Run a stage: `call`, and the process dies with its parent."""
    die_with_parent()
    call(app)


def write_metrics(values: dict[str, Any], path: Path, config: Any) -> None:
    """Write a metrics file: `values` plus `config`, the hash of the resolved configuration (plain values) they come from."""
    write_json({**values, "config": config_hash(config)}, path)
