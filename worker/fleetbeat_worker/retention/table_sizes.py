"""Table sizes: the rows of each table, the space that it takes, and the times of its oldest and newest row."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, exists, func, select, text
from sqlalchemy.exc import OperationalError

from fleetbeat_worker.database.tables import (
    Base,
    Event,
    Liveness,
    Notification,
    OutageRow,
    RejectedMessage,
    StoredHeartbeat,
    StrayHeartbeat,
    Task,
)

COUNTED_ROWS = 100_000
"""Up to this number by PostgreSQL's estimate, rows are counted, which takes a moment. SQLite has no estimate."""

_TIMES: dict[str, Any] = {
    "agents": Liveness.registered_at,
    "liveness": Liveness.last_seen_at,
    "stray_heartbeats": StrayHeartbeat.received_at,
    "events": Event.occurred_at,
    "tasks": Task.created_at,
    "rejected_messages": RejectedMessage.received_at,
    "outages": OutageRow.started_at,
    "notifications": Notification.created_at,
}
"""The column with the time of a row."""


@dataclass(frozen=True, slots=True)
class TableSize:
    """The size of one table."""

    name: str
    rows: int
    estimated: bool
    """Whether the number of rows is PostgreSQL's estimate."""
    bytes: int | None
    """With indexes; None where SQLite was built without `dbstat`."""
    oldest_at: datetime | None
    newest_at: datetime | None
    partitions: int | None
    """Of `heartbeats` on PostgreSQL."""


@dataclass(frozen=True, slots=True)
class FileSize:
    """The size of the file of an SQLite database."""

    bytes: int
    free_bytes: int
    """Left by deleted rows, and available for new ones."""


def read_table_sizes(connection: Connection) -> list[TableSize]:
    """Read the size of each table, in the order of names."""
    return [_table_size(connection, name) for name in sorted(Base.metadata.tables)]


def _table_size(connection: Connection, name: str) -> TableSize:
    rows, estimated, partitions = None, False, None
    if connection.dialect.name == "postgresql":
        # The relation itself, or its partitions if it has any.
        query = text(
            "SELECT sum(greatest(c.reltuples, 0)) FILTER (WHERE c.relkind = 'r')::bigint, "
            "sum(pg_total_relation_size(c.oid))::bigint, count(*) - 1 "
            "FROM pg_class AS c WHERE c.oid = CAST(:name AS regclass) "
            "OR c.oid IN (SELECT relid FROM pg_partition_tree(CAST(:name AS regclass)))"
        )
        guess, size, below = connection.execute(query, {"name": name}).one()
        partitions = below or None
        if guess > COUNTED_ROWS:
            rows, estimated = guess, True
    else:
        size = _bytes_in_file(connection, name)
    if rows is None:
        rows = connection.execute(select(func.count()).select_from(Base.metadata.tables[name])).scalar_one()
    oldest, newest = _span(connection, name)
    return TableSize(name, rows, estimated, size, oldest, newest, partitions)


def _bytes_in_file(connection: Connection, name: str) -> int | None:
    query = text("SELECT sum(pgsize) FROM dbstat WHERE name IN (SELECT name FROM sqlite_schema WHERE tbl_name = :name)")
    try:
        return int(connection.execute(query, {"name": name}).scalar_one())
    except OperationalError:
        return None


def _span(connection: Connection, name: str) -> tuple[datetime | None, datetime | None]:
    if name == "heartbeats":
        return _span_of_heartbeats(connection)
    moment = _TIMES.get(name)
    if moment is None:
        return None, None
    oldest, newest = connection.execute(select(select(func.min(moment)).scalar_subquery(), _newest(moment))).one()
    return oldest, newest


def _newest(moment: Any) -> Any:  # noqa: ANN401 - a mapped column
    return select(func.max(moment)).scalar_subquery()


def _span_of_heartbeats(connection: Connection) -> tuple[datetime | None, datetime | None]:
    """Read the first and the last receipt by ids and strays, as there is no index on receipts.

    It is slightly inexact where ids of nearly the same time are in another order than their receipts.
    """
    stray = exists().where(StrayHeartbeat.id == StoredHeartbeat.id)
    query = select(StoredHeartbeat.received_at).where(~stray).limit(1)
    ids = (StoredHeartbeat.id.asc(), StoredHeartbeat.id.desc())
    found = [connection.execute(query.order_by(order)).scalar() for order in ids]
    found += connection.execute(
        select(func.min(StrayHeartbeat.received_at), func.max(StrayHeartbeat.received_at))
    ).one()
    known = [moment for moment in found if moment is not None]
    return min(known, default=None), max(known, default=None)


def read_file_size(connection: Connection) -> FileSize | None:
    """Read the size of SQLite's file; None on PostgreSQL."""
    if connection.dialect.name != "sqlite":
        return None
    size, pages, free = (
        int(connection.exec_driver_sql(f"PRAGMA {name}").scalar_one())
        for name in ("page_size", "page_count", "freelist_count")
    )
    return FileSize(size * pages, size * free)
