"""Partitions: one of `heartbeats` for each day on PostgreSQL, made ahead of time.

A heartbeat's id is a UUIDv7, so a day is a range of ids, and the id alone can be the primary key.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from uuid import UUID

from sqlalchemy import Connection, text

from fleetbeat_worker.rules.spans import to_milliseconds

DAYS_BEHIND = 1
"""For heartbeats whose sender's clock is a little behind, or that waited in a spool."""
DAYS_AHEAD = 7
"""For a week without a sweep."""


def first_id(day: date) -> UUID:
    """Derive the smallest UUIDv7 of a day (UTC)."""
    return id_at(datetime.combine(day, time(), tzinfo=UTC))


def id_at(moment: datetime) -> UUID:
    """Derive the smallest UUIDv7 of a time; of one before 1970, the smallest there is."""
    return UUID(int=max(0, to_milliseconds(moment)) << 80)


def partition_name(day: date) -> str:
    """Compose the name of a day's partition."""
    return f"heartbeats_{day:%Y%m%d}"


def make_partitions(connection: Connection, now: datetime) -> list[str]:
    """Make the partitions around `now` that are missing; return their names. Does nothing on SQLite.

    A day whose rows are already in the default partition stays there: PostgreSQL refuses to split them off.
    """
    if connection.dialect.name != "postgresql":
        return []
    today = now.astimezone(UTC).date()
    days = [today + timedelta(days=offset) for offset in range(-DAYS_BEHIND, DAYS_AHEAD + 1)]
    query = text("SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'heartbeats'::regclass")
    existing = set(connection.execute(query).scalars())
    made = []
    for day in days:
        name = partition_name(day)
        if name in existing or _default_holds(connection, day):
            continue
        # Names and bounds are made of a date: no value comes from outside.
        connection.execute(
            text(
                f"CREATE TABLE IF NOT EXISTS {name} PARTITION OF heartbeats "
                f"FOR VALUES FROM ('{first_id(day)}') TO ('{first_id(day + timedelta(days=1))}')"
            )
        )
        made.append(name)
    return made


def _default_holds(connection: Connection, day: date) -> bool:
    bounds = {"low": first_id(day), "high": first_id(day + timedelta(days=1))}
    query = text("SELECT EXISTS (SELECT FROM heartbeats_default WHERE id >= :low AND id < :high)")
    return bool(connection.execute(query, bounds).scalar_one())
