"""The partitions of old days on PostgreSQL: taken off, what is young in them kept, and dropped whole.

Taking one off needs the lock of all of `heartbeats`, for a moment. It could be had without (DETACH … CONCURRENTLY), but
PostgreSQL refuses that while there is a default partition. Whatever takes long is done when it is off, and nobody
waits: so it gets another name then, by which the next one finds it if this one is killed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta

from sqlalchemy import Connection, text

from fleetbeat_worker.database.partitions import first_id, partition_name
from fleetbeat_worker.database.tables import StoredHeartbeat
from fleetbeat_worker.retention.queries import take_turn

LOCK_MILLISECONDS = 200
"""How long taking a partition off waits for who uses `heartbeats`. Ingest waits behind us for as long."""

_NAME = re.compile(r"heartbeats_(\d{8})(_old)?", re.ASCII)
_COLUMNS = ", ".join(column.name for column in StoredHeartbeat.__table__.columns)


def old_days(connection: Connection, before: datetime) -> list[date]:
    """Return the days of which each heartbeat that is no stray was received before a moment, the oldest first."""
    if connection.dialect.name != "postgresql":
        return []
    query = text(
        "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid "
        "WHERE i.inhparent = 'heartbeats'::regclass"
    )
    days = _days(connection.execute(query).scalars().all())
    # An id that is no stray is less than a day older than its receipt.
    return [day for day in days if day + timedelta(days=2) <= before.astimezone(UTC).date()]


def taken_off(connection: Connection) -> list[date]:
    """Return the days whose partitions were taken off and not dropped yet."""
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


def take_off(connection: Connection, day: date, before: datetime) -> bool:
    """Take a day's partition off; return whether it was still there.

    DatabaseUnavailable comes of it when somebody uses `heartbeats` for too long.
    """
    connection.execute(text(f"SET LOCAL lock_timeout = {LOCK_MILLISECONDS}"))
    take_turn(connection)
    if day not in old_days(connection, before):
        return False
    # Names are made of a date: nothing here comes from outside.
    name = partition_name(day)
    connection.execute(text(f"ALTER TABLE heartbeats DETACH PARTITION {name}"))
    connection.execute(text(f"ALTER TABLE {name} RENAME TO {name}_old"))
    return True


def drop(connection: Connection, day: date, before: datetime) -> bool:
    """Drop a partition that is off, but keep what was received since a moment; return whether it was still there.

    What is kept are strays of clocks that are behind. Where they go now is the default partition.
    """
    take_turn(connection)
    if day not in taken_off(connection):
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
