"""How a stage is started as a command, and how it writes its metrics."""

import errno
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from sgpipe.errors import SgpipeError

if TYPE_CHECKING:
    from sgpipe.tracking.run import StageRun

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
            f"{said}; lower the batch_size of the stage's section (or backbone.resolution), set train.gradient_checkpointing to "
            "true or compute.offload to model; `sgpipe doctor` prints a plan of the memory"
        )
    if isinstance(error, OSError) and error.errno in _OF_THE_MACHINE:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}; mend this and run the same command again"
    return None


def call(app: Callable[[], Any]) -> None:
    """Run a typer app or a function; an error that a user can mend ends in one line and exit code 2, in stages and command.

    Stopped by Ctrl-C it says how to go on (`progress.keeps`) and ends with 130, as typer makes it.
    """
    try:
        app()
    except SystemExit as ended:
        if ended.code == 130:
            from sgpipe.runs.progress import how_to_go_on

            print(how_to_go_on(), file=sys.stderr)
        raise
    except Exception as error:
        said = one_line(error)
        if said is None:
            raise
        print(f"error: {said}", file=sys.stderr)
        sys.exit(2)


def run(main: Callable[..., None]) -> None:
    """Run the function of a stage as a command whose options are its arguments.

    As `call` does; besides the process dies with its parent, and the stage's code is compared at its start and end, but not for
    what is no stage, and for a call for help.
    """
    from sgpipe.runs.code import begin_stage, check_unchanged
    from sgpipe.runs.parent import die_with_parent

    die_with_parent()
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    spec: ModuleSpec | None = getattr(sys.modules["__main__"], "__spec__", None)
    stage = spec.name if spec and spec.name.startswith("stages.") and "--help" not in sys.argv else None

    def between_checks() -> None:
        if stage:
            begin_stage(stage, Path())
        try:
            app()
        except SystemExit as ended:
            if not ended.code:
                check_unchanged()
            raise

    call(between_checks)


def write_metrics(values: dict[str, Any], path: Path, config: Any, recorded: "StageRun | None" = None) -> None:
    """Write a metrics file: `values` plus `config`, the hash of the resolved configuration (plain values) they come from; they go
    to the run that is `recorded`, too.

    Floats get `DIGITS` significant digits. A figure that is not finite is undefined: it becomes null, with a warning on stderr.
    """
    from sgpipe.runs.atomic import DIGITS, defined, write_json
    from sgpipe.runs.state import config_hash

    write_json({**defined(values, path), "config": config_hash(config)}, path, DIGITS)
    if recorded is not None:
        recorded.log_metrics(values)
