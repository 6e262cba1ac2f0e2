"""Writing many rows with one statement.

PostgreSQL takes one array per column and unnests them: several times faster than one set of parameters per row. SQLite
runs in our own process, where the driver's executemany is the fast way.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from sqlalchemy import bindparam, func, text, update as sql_update
from sqlalchemy.dialects import sqlite

from fleetbeat_worker.column_types import Instant, JsonObject, from_milliseconds, to_milliseconds

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from sqlalchemy import Column, Connection, Table

Row = dict[str, Any]


def insert(connection: Connection, table: Table, rows: Sequence[Row]) -> None:
    """Insert rows that have the same columns; one whose key (or unique value) is there already is left out."""
    if not rows:
        return
    if connection.dialect.name == "postgresql":
        columns = [table.c[name] for name in rows[0]]
        names = ", ".join(column.name for column in columns)
        # Names come from our own tables, never from outside.
        statement = (
            f"INSERT INTO {table.name} ({names}) SELECT * FROM {_unnest(connection, columns)} ON CONFLICT DO NOTHING"  # noqa: S608
        )
        connection.execute(text(statement), _arrays(columns, rows))
    else:
        connection.execute(sqlite.insert(table).on_conflict_do_nothing(), list(rows))


def update(connection: Connection, table: Table, rows: Sequence[Row], *, keep_when_null: bool = False) -> None:
    """Update rows by their primary key, which each names beside the columns to set; all have the same columns.

    With `keep_when_null`, a None leaves what was there.
    """
    if not rows:
        return
    (key,) = table.primary_key.columns
    columns = [table.c[name] for name in rows[0]]
    changed = [column for column in columns if column is not key]
    if connection.dialect.name == "postgresql":
        new = {c.name: f"COALESCE(v.{c.name}, t.{c.name})" if keep_when_null else f"v.{c.name}" for c in changed}
        sets = ", ".join(f"{name} = {value}" for name, value in new.items())
        names = ", ".join(column.name for column in columns)
        statement = f"UPDATE {table.name} AS t SET {sets} FROM {_unnest(connection, columns)} AS v ({names}) WHERE t.{key.name} = v.{key.name}"  # noqa: S608,E501
        connection.execute(text(statement), _arrays(columns, rows))
    else:
        values = {c.name: func.coalesce(_new(c), c) if keep_when_null else _new(c) for c in changed}
        statement_ = sql_update(table).where(key == _new(key)).values(values)
        connection.execute(statement_, [{f"new_{name}": value for name, value in row.items()} for row in rows])


def _new(column: Column[Any]) -> Any:  # noqa: ANN401 - a bind parameter of the column's type
    return bindparam(f"new_{column.name}", type_=column.type)


def _unnest(connection: Connection, columns: Sequence[Column[Any]]) -> str:
    types = (column.type.compile(connection.dialect) for column in columns)
    return f"unnest({', '.join(f'CAST(:{c.name} AS {t}[])' for c, t in zip(columns, types, strict=True))})"


def _arrays(columns: Sequence[Column[Any]], rows: Sequence[Row]) -> dict[str, list[Any]]:
    arrays = {column.name: [row[column.name] for row in rows] for column in columns}
    for column in columns:
        convert: Callable[[Any], Any] | None = None
        if isinstance(column.type, Instant):
            convert = _to_the_millisecond
        elif isinstance(column.type, JsonObject):
            convert = json.dumps
        if convert is not None:
            values = arrays[column.name]
            arrays[column.name] = [None if value is None else convert(value) for value in values]
    return arrays


def _to_the_millisecond(moment: datetime) -> datetime:
    return from_milliseconds(to_milliseconds(moment))
