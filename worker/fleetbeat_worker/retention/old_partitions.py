"""Old partitions on PostgreSQL: detaches those of old days, keeps the young rows in them, and drops them.

Detaching needs a lock on all of `heartbeats`, for a moment. PostgreSQL could do without (DETACH … CONCURRENTLY), but
not while there is a default partition. What takes long is done afterwards, when no query waits for it. So a detached
partition is renamed, and found by that name if the job is killed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta

from sqlalchemy import Connection, text

from fleetbeat_worker.database.partitions import first_id, partition_name
from fleetbeat_worker.database.tables import StoredHeartbeat
from fleetbeat_worker.retention.queries import lock_pruning

LOCK_MILLISECONDS = 200
"""How long detaching waits for users of `heartbeats`; ingest waits behind it for as long."""

_NAME = re.compile(r"heartbeats_(\d{8})(_old)?", re.ASCII)
_COLUMNS = ", ".join(column.name for column in StoredHeartbeat.__table__.columns)


def find_old(connection: Connection, before: datetime) -> list[date]:
    """Find the days whose heartbeats, except strays, were all received before a given time, the oldest first."""
    if connection.dialect.name != "postgresql":
        return []
    query = text(
        "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid "
        "WHERE i.inhparent = 'heartbeats'::regclass"
    )
    days = _days(connection.execute(query).scalars().all())
    # The time of an id is less than a day before its receipt, except for strays.
    return [day for day in days if day + timedelta(days=2) <= before.astimezone(UTC).date()]


def find_detached(connection: Connection) -> list[date]:
    """Find the days whose partitions are detached and not dropped yet."""
    if connection.dialect.name != "postgresql":
        return []
    query = text(
        "SELECT relname FROM pg_class WHERE relkind = 'r' AND NOT relispartition "
        r"AND relnamespace = current_schema()::regnamespace AND relname LIKE 'heartbeats\_%\_old'"
    )
    return _days(connection.execute(query).scalars().all())


def _days(names: Iterable[str]) -> list[date]:
    found = [match[1] for match in map(_NAME.fullmatch, names) if match]
    return sorted(datetime.strptime(day, "%Y%m%d").replace(tzinfo=UTC).date() for day in found)


def detach(connection: Connection, day: date, before: datetime) -> bool:
    """Detach a day's partition; return whether it was still attached.

    Raises DatabaseUnavailable when `heartbeats` is in use for too long.
    """
    connection.execute(text(f"SET LOCAL lock_timeout = {LOCK_MILLISECONDS}"))
    lock_pruning(connection)
    if day not in find_old(connection, before):
        return False
    # The name is made of a date, so there is nothing to quote.
    name = partition_name(day)
    connection.execute(text(f"ALTER TABLE heartbeats DETACH PARTITION {name}"))
    connection.execute(text(f"ALTER TABLE {name} RENAME TO {name}_old"))
    return True


def drop(connection: Connection, day: date, before: datetime) -> bool:
    """Drop a detached partition, but keep the rows received since a given time; return whether it was still there.

    These are strays: heartbeats of agents whose clocks are slow. They are moved to the default partition.
    """
    lock_pruning(connection)
    if day not in find_detached(connection):
        return False
    name = f"{partition_name(day)}_old"
    bounds = {"low": first_id(day), "high": first_id(day + timedelta(days=1))}
    keep = text(
        f"INSERT INTO heartbeats ({_COLUMNS}) SELECT {_COLUMNS} FROM {name} "  # noqa: S608 - as above
        "WHERE id IN (SELECT id FROM stray_heartbeats WHERE id >= :low AND id < :high AND received_at >= :since) "
        "ON CONFLICT DO NOTHING"
    )
    connection.execute(keep, {**bounds, "since": before})
    connection.execute(text(f"DROP TABLE {name}"))
    return True
