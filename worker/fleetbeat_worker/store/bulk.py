"""Writing many rows with one statement.

PostgreSQL takes one array per column and unnests them: several times faster than one set of parameters per row. SQLite
runs in our own process, where the driver's executemany is the fast way. Both go to the driver directly, with values
that are converted here column by column: measured on batches of 1,000, that takes 18 µs less per heartbeat on either
than SQLAlchemy's and psycopg's own conversions, of 70 µs in all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fleetbeat_worker.column_types import Identifier, Instant, JsonObject, to_json, to_milliseconds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Column, Connection, Table

Row = dict[str, Any]


def insert(connection: Connection, table: Table, rows: Sequence[Row]) -> None:
    """Insert rows that have the same columns; one whose key (or unique value) is there already is left out."""
    if not rows:
        return
    columns = _said(table, rows)
    names = ", ".join(column.name for column in columns)
    if connection.dialect.name == "postgresql":
        source = f"SELECT * FROM {_unnest(connection, columns)}"  # noqa: S608 - names of our own tables, never others
    else:
        source = f"VALUES ({', '.join('?' * len(columns))})"
    statement = f"INSERT INTO {table.name} ({names}) {source} ON CONFLICT DO NOTHING"
    connection.exec_driver_sql(statement, _parameters(connection, columns, rows))


def update(connection: Connection, table: Table, rows: Sequence[Row], *, keep_when_null: bool = False) -> None:
    """Update rows by their primary key, which each names beside the columns to set; all have the same columns.

    With `keep_when_null`, a None leaves what was there.
    """
    if not rows:
        return
    (key,) = table.primary_key.columns
    columns = _said(table, rows) if keep_when_null else [table.c[name] for name in rows[0]]
    changed = [column for column in columns if column is not key]
    new = "COALESCE({0}, t.{1})" if keep_when_null else "{0}"
    if connection.dialect.name == "postgresql":
        sets = ", ".join(f"{column.name} = {new.format(f'v.{column.name}', column.name)}" for column in changed)
        names = ", ".join(column.name for column in (*changed, key))
        source = f"FROM {_unnest(connection, [*changed, key])} AS v ({names}) WHERE t.{key.name} = v.{key.name}"
    else:
        sets = ", ".join(f"{column.name} = {new.format('?', column.name)}" for column in changed)
        source = f"WHERE t.{key.name} = ?"
    statement = f"UPDATE {table.name} AS t SET {sets} {source}"  # noqa: S608 - names of our own tables, never others
    connection.exec_driver_sql(statement, _parameters(connection, [*changed, key], rows))


def _said(table: Table, rows: Sequence[Row]) -> list[Column[Any]]:
    """Return the columns that some row has a value for: most of a heartbeat's are empty, and would cost as much."""
    return [table.c[name] for name in rows[0] if any(row[name] is not None for row in rows)]


def _unnest(connection: Connection, columns: Sequence[Column[Any]]) -> str:
    types = (column.type.compile(connection.dialect) for column in columns)
    return f"unnest({', '.join(f'CAST(%s AS {kind}[])' for kind in types)})"


def _parameters(connection: Connection, columns: Sequence[Column[Any]], rows: Sequence[Row]) -> Any:  # noqa: ANN401
    """Return what the driver takes: an array for each column, or a tuple for each row."""
    by_column = [[row[column.name] for row in rows] for column in columns]
    if connection.dialect.name == "postgresql":
        return tuple(_array(column, values) for column, values in zip(columns, by_column, strict=True))
    return list(zip(*(_plain(column, values) for column, values in zip(columns, by_column, strict=True)), strict=True))


def _array(column: Column[Any], values: list[Any]) -> list[Any] | str:
    """Return an array for PostgreSQL; where no value needs quotes, as its text."""
    if isinstance(column.type, Identifier):
        return "{" + ",".join(["NULL" if value is None else value.hex for value in values]) + "}"
    if isinstance(column.type, Instant):  # cut to the millisecond, which PostgreSQL would round to
        texts = ["NULL" if value is None else value.isoformat(timespec="milliseconds") for value in values]
        return "{" + ",".join(texts) + "}"
    return _json(values) if isinstance(column.type, JsonObject) else values


def _plain(column: Column[Any], values: list[Any]) -> list[Any]:
    """Return values as SQLite keeps them."""
    if isinstance(column.type, Identifier):
        return [None if value is None else value.bytes for value in values]
    if isinstance(column.type, Instant):
        return [None if value is None else to_milliseconds(value) for value in values]
    return _json(values) if isinstance(column.type, JsonObject) else values


def _json(values: list[Any]) -> list[str | None]:
    return [None if value is None else to_json(value) for value in values]
