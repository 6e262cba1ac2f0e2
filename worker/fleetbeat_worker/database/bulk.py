"""Bulk SQL: reading and writing many rows with one statement.

PostgreSQL takes one array per column and unnests them: several times faster than one set of parameters per row. SQLite
takes some rows at once. Both go to the driver directly, without the conversions of SQLAlchemy and psycopg, which took
more than half of a batch's time. So times are integers here, as SQLite keeps them: milliseconds since 1970.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any
from uuid import UUID

from sqlalchemy import Column, ColumnElement, Connection, Table, bindparam, text
from sqlalchemy.types import NullType

from fleetbeat_worker.database.column_types import Identifier, Instant, JsonObject, to_json
from fleetbeat_worker.database.pg_arrays import Array, array_of, element_type

ROWS_AT_ONCE = 500
"""Rows of one SQLite statement: more make it no faster, and it has 32,766 parameters at most."""


def select(
    connection: Connection, columns: Sequence[Column[Any]], keys: Sequence[UUID], *, lock: bool = False
) -> Iterator[tuple[UUID, Sequence[Any]]]:
    """Yield each key that exists, with the other columns of its row; the first of `columns` is the key.

    With `lock`, PostgreSQL locks the rows in the order of their keys until the transaction ends.
    """
    if not keys:
        return
    key, *others = columns
    names = ", ".join(_to_number(connection, column) for column in others)
    table = key.table.name
    by_bytes = {key.bytes: key for key in keys}
    parameters: tuple[Any, ...]
    if connection.dialect.name == "postgresql":
        # The key's bytes instead of the key itself: psycopg takes 2 µs to make a UUID.
        statement = f"SELECT uuid_send({key.name}), {names} FROM {table} WHERE {key.name} = ANY(CAST(%s AS uuid[]))"  # noqa: S608 - our own names, never others
        if lock:
            statement += f" ORDER BY {key.name} FOR UPDATE"
        parameters = (array_of(key, keys),)
    else:
        statement = f"SELECT {key.name}, {names} FROM {table} WHERE {key.name} IN {_places(1, len(keys))}"  # noqa: S608 - as above
        parameters = tuple(by_bytes)
    for found, *row in connection.exec_driver_sql(statement, parameters).all():
        yield by_bytes[found], row


def among(connection: Connection, column: Column[Any], keys: Sequence[UUID]) -> ColumnElement[bool]:
    """Compose the condition that a column is one of some keys, with a single parameter on PostgreSQL."""
    if connection.dialect.name == "postgresql":
        named = text(f"{column.table.name}.{column.name} = ANY(CAST(:keys AS uuid[]))")
        return named.bindparams(bindparam("keys", array_of(column, keys), type_=NullType()))  # type: ignore[return-value] # SQLAlchemy takes text for a condition
    return column.in_(keys)


def insert(connection: Connection, table: Table, names: Sequence[str], rows: Sequence[Sequence[Any]]) -> int:
    """Insert rows of these columns, and return how many were new; one whose key or unique value exists is left out."""
    if not rows:
        return 0
    columns, values = _filled_columns(table, names, rows)
    into = f"INSERT INTO {table.name} ({', '.join(column.name for column in columns)})"
    if connection.dialect.name == "postgresql":
        source = f"SELECT {', '.join(_from_array(column) for column in columns)} FROM {_unnest(columns)}"  # noqa: S608 - as above
        statement = f"{into} {source} ON CONFLICT DO NOTHING"
        return connection.exec_driver_sql(statement, _arrays(columns, values)).rowcount
    return _in_steps(connection, columns, values, lambda rows: f"{into} VALUES {rows} ON CONFLICT DO NOTHING")


def insert_rows(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> int:
    """Insert rows that name their columns, all the same ones in the same order; return how many were new."""
    return insert(connection, table, list(rows[0]), [tuple(row.values()) for row in rows]) if rows else 0


def update(
    connection: Connection,
    table: Table,
    names: Sequence[str],
    rows: Sequence[Sequence[Any]],
    *,
    keep_when_null: bool = False,
) -> None:
    """Update rows by their primary key, the first of the columns.

    With `keep_when_null`, a None keeps the old value.
    """
    if not rows:
        return
    if keep_when_null:
        columns, values = _filled_columns(table, names, rows)
    else:
        columns, values = [table.c[name] for name in names], list(zip(*rows, strict=True))
    key, *changed = columns
    new = "{0} = COALESCE({1}, t.{0})" if keep_when_null else "{0} = {1}"
    if connection.dialect.name == "postgresql":
        sets = ", ".join(new.format(column.name, _from_array(column)) for column in changed)
        statement = f"UPDATE {table.name} AS t SET {sets} FROM {_unnest(columns)} WHERE t.{key.name} = v.{key.name}"  # noqa: S608 - as above
        connection.exec_driver_sql(statement, _arrays(columns, values))
        return
    # Row by row: from a list of values SQLite would look up each row twice.
    sets = ", ".join(new.format(column.name, f"?{place}") for place, column in enumerate(changed, start=2))
    statement = f"UPDATE {table.name} AS t SET {sets} WHERE t.{key.name} = ?1"  # noqa: S608 - as above
    converted = [_sqlite_values(column, of_column) for column, of_column in zip(columns, values, strict=True)]
    connection.exec_driver_sql(statement, list(zip(*converted, strict=True)))


def update_all(connection: Connection, table: Table, keys: Sequence[UUID], values: Mapping[str, Any]) -> None:
    """Write the same values to all rows with these primary keys."""
    if not keys:
        return
    (key,) = table.primary_key.columns
    columns = [table.c[name] for name in values]
    on_postgresql = connection.dialect.name == "postgresql"
    given = ["TIMESTAMPTZ 'epoch' + %s * INTERVAL '1 ms'" if isinstance(c.type, Instant) else "%s" for c in columns]
    sets = ", ".join(
        f"{column.name} = {value if on_postgresql else '?'}" for column, value in zip(columns, given, strict=True)
    )
    begin = f"UPDATE {table.name} SET {sets} WHERE {key.name}"  # noqa: S608 - as above
    if on_postgresql:
        statement = f"{begin} = ANY(CAST(%s AS uuid[]))"
        connection.exec_driver_sql(statement, (*values.values(), array_of(key, keys)))
        return
    for start in range(0, len(keys), ROWS_AT_ONCE):
        some = [one.bytes for one in keys[start : start + ROWS_AT_ONCE]]
        connection.exec_driver_sql(f"{begin} IN {_places(1, len(some))}", (*values.values(), *some))


def _filled_columns(
    table: Table, names: Sequence[str], rows: Sequence[Sequence[Any]]
) -> tuple[list[Column[Any]], list[Sequence[Any]]]:
    """Select the columns that some row has a value for, with their values: most of a heartbeat's are empty."""
    by_column = zip(names, zip(*rows, strict=True), strict=True)
    filled = [(table.c[name], values) for name, values in by_column if values.count(None) < len(values)]
    return [column for column, _ in filled], [values for _, values in filled]


def _in_steps(
    connection: Connection,
    columns: Sequence[Column[Any]],
    values: Sequence[Sequence[Any]],
    statement: Callable[[str], str],
) -> int:
    """Run an SQLite statement for all rows, `ROWS_AT_ONCE` each time, so that other threads run in between.

    Returns how many rows it changed.
    """
    changed = 0
    converted = [_sqlite_values(column, of_column) for column, of_column in zip(columns, values, strict=True)]
    count = len(values[0])
    for start in range(0, count, ROWS_AT_ONCE):
        end = min(start + ROWS_AT_ONCE, count)
        parameters = chain.from_iterable(zip(*(of_column[start:end] for of_column in converted), strict=True))
        changed += connection.exec_driver_sql(statement(_places(end - start, len(columns))), tuple(parameters)).rowcount
    return changed


@lru_cache(maxsize=256)
def _places(rows: int, columns: int) -> str:
    return ", ".join([f"({', '.join('?' * columns)})"] * rows)


def _unnest(columns: Sequence[Column[Any]]) -> str:
    arrays = ", ".join(f"CAST(%s AS {element_type(column)}[])" for column in columns)
    return f"unnest({arrays}) AS v ({', '.join(column.name for column in columns)})"


def _from_array(column: Column[Any]) -> str:
    """Compose the SQL of a value that came in an array, for PostgreSQL."""
    value = f"v.{column.name}"
    return f"TIMESTAMPTZ 'epoch' + {value} * INTERVAL '1 ms'" if isinstance(column.type, Instant) else value


def _to_number(connection: Connection, column: Column[Any]) -> str:
    """Compose the SQL of a column's value, a time as milliseconds."""
    if isinstance(column.type, Instant) and connection.dialect.name == "postgresql":
        return f"CAST(date_part('epoch', {column.name}) * 1000 AS bigint)"
    return str(column.name)


def _arrays(columns: Sequence[Column[Any]], values: Sequence[Sequence[Any]]) -> tuple[Array, ...]:
    return tuple(array_of(column, of_column) for column, of_column in zip(columns, values, strict=True))


def _sqlite_values(column: Column[Any], values: Sequence[Any]) -> Sequence[Any]:
    """Convert values into SQLite's."""
    if isinstance(column.type, Identifier):
        return [None if value is None else value.bytes for value in values]
    if isinstance(column.type, JsonObject):
        return [None if value is None else to_json(value) for value in values]
    return values
