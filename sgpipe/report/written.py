"""Files that other commands wrote, as a person names them: another layout is an error of one line, none of a library."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from sgpipe.errors import DataError, first_line

EVALUATION: Final = ("metrics of an evaluation", "dvc repro evaluate")
"""What metrics/evaluation.json is, and the command that writes it."""
LAYOUT: Final = (LookupError, TypeError, AttributeError, ValueError, OSError)
"""What the first use of a value raises that is missing, or of another kind than its writer gives it; beside polars' errors."""


@contextmanager
def as_written(path: Path, what: str, command: str) -> Iterator[None]:
    """Within the body, which reads figures of the file and nothing else, another layout raises `DataError`."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, LAYOUT) and type(error).__module__.partition(".")[0] != "polars":  # which study needs not
            raise
        said = f"{error} is missing" if isinstance(error, KeyError) else first_line(error)
        raise DataError(f"{path}: is no {what} ({said}); give what `{command}` writes") from error
