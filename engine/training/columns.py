"""Read columns of parquet files in their original types, also after pandas, polars, DuckDB or `datasets` rewrote them.

These libraries keep the values and the order of the rows. They drop the metadata of the schema and change types: to
long or dictionary-encoded text, to wider integers, and to floats in a column with missing values.
"""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sector.engine.errors import InputError, first_line
from sector.engine.tasks import DEFAULT, find_task
from sector.engine.tasks.task import Task, one_task
from sector.engine.training.locations import Location, opened

TASK = "task"


def read_columns(
    path: Location, schema: pa.Schema, names: Sequence[str], optional: Sequence[str] = ()
) -> tuple[Task, list[list[Any]]]:
    """Return the task of all rows, and the named columns in the types of a schema.

    Raise InputError if the file cannot be read, lacks a column, or holds a value of another type.

    names: columns to read.
    optional: those of them in which values may be missing.
    """
    table = _read(path, [*names, TASK], needed=names)
    columns = [_column(path, table, schema.field(name), name in optional) for name in names]
    return _task(path, table, schema), columns


def read_table(path: Location) -> pa.Table:
    """Read all columns as they are, without metadata. Raise InputError if the file cannot be read."""
    return _read(path).replace_schema_metadata(None)


def read_rows(path: Location) -> list[dict[str, Any]]:
    """Read all rows as they are. Raise InputError if the file cannot be read."""
    return _read(path).to_pylist()


def _read(path: Location, names: Sequence[str] | None = None, needed: Sequence[str] = ()) -> pa.Table:
    """Read the named columns that the file has; all columns by default.

    Raise InputError if the file cannot be read, lacks one of `needed`, or has two columns of one name.
    """
    try:
        # pyarrow cannot open a path that is not UTF-8, so Python opens it.
        with opened(path) as source, pq.ParquetFile(source) as file:
            present = file.schema_arrow.names
            if repeated := next((name for name in names or () if present.count(name) > 1), None):
                raise InputError(f"{path} has several columns {repeated!r}; leave one")
            if missing := next((name for name in needed if name not in present), None):
                raise InputError(f"{path} lacks the column {missing!r}; write it with `sector generate`")
            return file.read(columns=None if names is None else [name for name in present if name in names])
    except FileNotFoundError as error:
        raise InputError(f"no such file: {path}") from error
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a readable parquet file ({first_line(error)})") from error


def _column(path: Location, table: pa.Table, field: pa.Field, optional: bool) -> list[Any]:
    """Read one column in the type of its field. Raise InputError for a value that this type cannot hold exactly."""
    column = table.column(field.name)
    stored = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    # Numbers are not cast to text: a library that made text a float has rounded it.
    if pa.types.is_string(field.type) and not _is_text(stored):
        raise InputError(f"{path} holds {stored} in the column {field.name!r}, which is to be text")
    try:
        values: list[Any] = column.cast(field.type).to_pylist()
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} holds {stored} in the column {field.name!r}, which is to be {field.type} ({first_line(error)})"
        ) from error
    if not optional and None in values:
        raise InputError(f"{path} has no value in the column {field.name!r} of row {values.index(None) + 1}")
    return values


def _is_text(kind: pa.DataType) -> bool:
    """Return whether a type is text, or null, the type of a column without values."""
    predicates = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)
    return any(predicate(kind) for predicate in predicates)


def _task(path: Location, table: pa.Table, schema: pa.Schema) -> Task:
    """Return the task of the rows. Raise InputError if they have several, or one that does not exist.

    Rows of older files name no task: it is in the metadata, or it is the default one.
    """
    of_file = (table.schema.metadata or {}).get(TASK.encode(), DEFAULT.encode()).decode(errors="replace")
    of_rows = _column(path, table, schema.field(TASK), True) if TASK in table.column_names else [None]
    names = list(dict.fromkeys(of_file if name is None else name for name in of_rows))
    try:
        return find_task(one_task(names or [of_file]))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
