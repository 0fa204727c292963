"""Tables that a person names in an option: what is none, or has other columns, is said with the option and the file."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from sgpipe.errors import DataError, first_line


def given_table(option: str, path: Path, schema: pa.Schema, like: str, columns: list[str] | None = None) -> pa.Table:
    """The columns of `schema` (or those named) of a Parquet file. `like` is a file of that kind, which errors name.

    Raises `DataError` for a file that is missing, is no Parquet, or lacks a column or has it in another type.
    """
    if not path.is_file():
        raise DataError(f"{option} {path}: no such file; give a table as {like}")
    wanted = pa.schema([schema.field(name) for name in columns or schema.names])
    try:
        found = pq.read_schema(path).names
        if missing := [name for name in wanted.names if name not in found]:
            raise DataError(f"{option} {path}: has no column {', '.join(missing)}; give a table as {like}")
        return pq.read_table(path, columns=wanted.names).cast(wanted)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{option} {path}: cannot be read as such a table ({first_line(error)}); give one as {like}") from None
