"""Reading and writing many rows with one statement.

PostgreSQL takes one array per column and unnests them: several times faster than one set of parameters per row. SQLite
runs in our own process, where the driver's executemany is the fast way. Both go to the driver directly, without the
conversions of SQLAlchemy and psycopg, which took more than half of a batch's time. So moments are integers here, as
SQLite keeps them: milliseconds since 1970.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy.dialects import postgresql

from fleetbeat_worker.column_types import Identifier, Instant, JsonObject, to_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from uuid import UUID

    from sqlalchemy import Column, Connection, Table

Row = dict[str, Any]

_POSTGRESQL = postgresql.dialect()  # type: ignore[no-untyped-call] # SQLAlchemy has no hint there


def select(
    connection: Connection, columns: Sequence[Column[Any]], source: str, keys: Sequence[UUID]
) -> Iterator[tuple[UUID, Sequence[Any]]]:
    """Yield each key that is there, with the columns of its row.

    `source` is what is read from, where the first column is the key's: `liveness JOIN agents …`.
    """
    if not keys:
        return
    names = ", ".join(_number(connection, column) for column in columns)
    key = f"{columns[0].table.name}.{columns[0].name}"
    if connection.dialect.name == "postgresql":
        # A key's place instead of the key itself: psycopg takes 2 µs to make a UUID.
        wanted = "unnest(CAST(%s AS uuid[])) WITH ORDINALITY AS wanted (key, place)"
        statement = f"SELECT wanted.place - 1, {names} FROM {source} JOIN {wanted} ON {key} = wanted.key"  # noqa: S608 - our own names, never others
        found = connection.exec_driver_sql(statement, (_array(columns[0], keys),)).all()
        yield from ((keys[row[0]], row[1:]) for row in found)
    else:
        statement = f"SELECT {names} FROM {source} WHERE {key} IN ({', '.join('?' * len(keys))})"  # noqa: S608 - as above
        by_bytes = {key.bytes: key for key in keys}
        found = connection.exec_driver_sql(statement, tuple(by_bytes)).all()
        yield from ((by_bytes[row[0]], row) for row in found)


def insert(connection: Connection, table: Table, rows: Sequence[Row]) -> None:
    """Insert rows that have the same columns; one whose key (or unique value) is there already is left out."""
    if not rows:
        return
    columns = _said(table, rows)
    names = ", ".join(column.name for column in columns)
    if connection.dialect.name == "postgresql":
        source = f"SELECT {', '.join(_moment(column) for column in columns)} FROM {_unnest(columns)}"  # noqa: S608 - as above
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
    on_postgresql = connection.dialect.name == "postgresql"
    new = "{0} = COALESCE({1}, t.{0})" if keep_when_null else "{0} = {1}"
    sets = ", ".join(new.format(column.name, _moment(column) if on_postgresql else "?") for column in changed)
    source = (
        f"FROM {_unnest([*changed, key])} WHERE t.{key.name} = v.{key.name}"
        if on_postgresql
        else f"WHERE t.{key.name} = ?"
    )
    statement = f"UPDATE {table.name} AS t SET {sets} {source}"  # noqa: S608 - as above
    connection.exec_driver_sql(statement, _parameters(connection, [*changed, key], rows))


def _said(table: Table, rows: Sequence[Row]) -> list[Column[Any]]:
    """Return the columns that some row has a value for: most of a heartbeat's are empty, and would cost as much."""
    return [table.c[name] for name in rows[0] if any(row[name] is not None for row in rows)]


def _unnest(columns: Sequence[Column[Any]]) -> str:
    arrays = ", ".join(f"CAST(%s AS {_array_type(column)}[])" for column in columns)
    return f"unnest({arrays}) AS v ({', '.join(column.name for column in columns)})"


def _array_type(column: Column[Any]) -> str:
    return "bigint" if isinstance(column.type, Instant) else column.type.compile(_POSTGRESQL)


def _moment(column: Column[Any]) -> str:
    """Return what PostgreSQL makes of a value that came in an array."""
    value = f"v.{column.name}"
    return f"TIMESTAMPTZ 'epoch' + {value} * INTERVAL '1 ms'" if isinstance(column.type, Instant) else value


def _number(connection: Connection, column: Column[Any]) -> str:
    """Return what gives a column's value, a moment as milliseconds."""
    name = f"{column.table.name}.{column.name}"
    if isinstance(column.type, Instant) and connection.dialect.name == "postgresql":
        return f"CAST(date_part('epoch', {name}) * 1000 AS bigint)"
    return name


def _parameters(connection: Connection, columns: Sequence[Column[Any]], rows: Sequence[Row]) -> Any:  # noqa: ANN401
    """Return what the driver takes: an array for each column, or a tuple for each row."""
    by_column = [[row[column.name] for row in rows] for column in columns]
    convert = _array if connection.dialect.name == "postgresql" else _plain
    converted = [convert(column, values) for column, values in zip(columns, by_column, strict=True)]
    return tuple(converted) if convert is _array else list(zip(*converted, strict=True))


def _array(column: Column[Any], values: Sequence[Any]) -> Sequence[Any] | str:
    """Return an array for PostgreSQL; where no value needs quotes, as its text."""
    if isinstance(column.type, Identifier):
        return "{" + ",".join(["NULL" if value is None else value.hex for value in values]) + "}"
    if isinstance(column.type, Instant):
        return "{" + ",".join(["NULL" if value is None else str(value) for value in values]) + "}"
    return _json(values) if isinstance(column.type, JsonObject) else values


def _plain(column: Column[Any], values: Sequence[Any]) -> Sequence[Any]:
    """Return values as SQLite keeps them."""
    if isinstance(column.type, Identifier):
        return [None if value is None else value.bytes for value in values]
    return _json(values) if isinstance(column.type, JsonObject) else values


def _json(values: Sequence[Any]) -> list[str | None]:
    return [None if value is None else to_json(value) for value in values]
