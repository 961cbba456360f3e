"""Columns of parquet files as they were written, whatever pandas, polars, DuckDB or `datasets` have made of the file.

Those keep the values and the order of the rows. They drop the metadata of the schema, and change types: long text, text
by a dictionary, wider integers, floats where a value is missing.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sector.engine.errors import InputError, first_line
from sector.engine.tasks import DEFAULT, find_task
from sector.engine.tasks.task import Task, one_task

TASK = "task"


def read_columns(
    path: Path, schema: pa.Schema, names: Sequence[str], optional: Sequence[str] = ()
) -> tuple[Task, list[list[Any]]]:
    """Read some columns in the types of a schema, and the task that all rows are of.

    optional: those of them in which a value may be missing.
    InputError if the file cannot be read, lacks a column, or holds what the schema has no place for.
    """
    table = _read(path, [*names, TASK], needed=names)
    columns = [_column(path, table, schema.field(name), name in optional) for name in names]
    return _task(path, table, schema), columns


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read all rows as they are. InputError if the file cannot be read."""
    return _read(path).to_pylist()


def _read(path: Path, names: Sequence[str] | None = None, needed: Sequence[str] = ()) -> pa.Table:
    """Read the columns of these names that are there, and nothing else; all of them by default."""
    try:
        # pyarrow itself opens no name that is not UTF-8.
        with path.open("rb") as opened, pq.ParquetFile(opened) as file:
            there = file.schema_arrow.names
            if wrong := next((name for name in names or () if there.count(name) > 1), None):
                raise InputError(f"{path} has several columns {wrong!r}; leave one")
            if missing := next((name for name in needed if name not in there), None):
                raise InputError(f"{path} lacks the column {missing!r}; write it with `sector generate`")
            return file.read(columns=None if names is None else [name for name in there if name in names])
    except FileNotFoundError as error:
        raise InputError(f"no such file: {path}") from error
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a readable parquet file ({first_line(error)})") from error


def _column(path: Path, table: pa.Table, field: pa.Field, optional: bool) -> list[Any]:
    """Read one column in the type of its field. InputError on a value that is not exactly one of that type."""
    column = table.column(field.name)
    stored = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    # A number made into text is not always what the text was: floats are rounded.
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
    """Is it text, or nothing at all?"""
    texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)
    return any(is_one(kind) for is_one in texts)


def _task(path: Path, table: pa.Table, schema: pa.Schema) -> Task:
    """Find the task of the rows. InputError if they are of several, or of none that there is.

    Rows that do not name it are older: it was in the metadata, or they are of the first task there was.
    """
    older = (table.schema.metadata or {}).get(TASK.encode(), DEFAULT.encode()).decode(errors="replace")
    named = _column(path, table, schema.field(TASK), True) if TASK in table.column_names else [None]
    try:
        return find_task(one_task(list(dict.fromkeys(older if name is None else name for name in named)) or [older]))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
