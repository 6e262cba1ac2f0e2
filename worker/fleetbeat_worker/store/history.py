"""History: the heartbeats of sessions in order, and what changed.

Heartbeats have no index by session: each would cost another write, and only explanations need it. They are found by
their ids, which hold the time at which they were made, and sorted by the database, without memory of ours.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, func, select

from fleetbeat_worker.database.column_types import Identifier, Instant
from fleetbeat_worker.database.partitions import id_at
from fleetbeat_worker.database.tables import Agent, Event, Liveness, StoredHeartbeat, StrayHeartbeat
from fleetbeat_worker.rules.enums import EventType
from fleetbeat_worker.rules.spans import from_milliseconds

HeartbeatTimes = tuple[bytes, int, int]
"""A heartbeat: the session's 16 bytes, when it was received and when it was seen (milliseconds since 1970)."""

OF_A_SESSION = (
    EventType.REGISTERED,
    EventType.DEGRADED,
    EventType.RECOVERED,
    EventType.DEREGISTERED,
    EventType.PAUSED,
    EventType.RESUMED,
)
"""The changes that decide whether a session is judged, and how."""

_DAY = timedelta(days=1)
"""A heartbeat whose id's time is further than this from its receipt is listed as a stray."""
_SKEW = timedelta(minutes=1)
"""By how much a sender's clock may be fast and its ids are still found in the first search."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
NEIGHBOURS = 50_000
"""How many heartbeats are searched for those of one session: that takes some 10 ms."""
_ROWS_AT_ONCE = 5000
_SESSION_COLUMNS = [
    *(Agent.session_id, Agent.agent_name, Agent.ended_at, Agent.paused_at, Agent.paused_until),
    *(column for column in Liveness.__table__.columns if not column.primary_key),
]
_SESSIONS = select(*_SESSION_COLUMNS).join(Liveness, Liveness.session_id == Agent.session_id)


def read_sessions_after(connection: Connection, after: UUID | None, limit: int) -> Sequence[Row[Any]]:
    """Read the next sessions in the order of their ids, with their promise and their liveness."""
    query = _SESSIONS.order_by(Agent.session_id).limit(limit)
    return connection.execute(query if after is None else query.where(Agent.session_id > after)).all()


def read_all_sessions(connection: Connection, asked: str | UUID) -> Sequence[Row[Any]]:
    """Read all sessions that a name ever had, or the one with an id, as `read_sessions_after` does."""
    wanted = Agent.agent_name == asked if isinstance(asked, str) else Agent.session_id == asked
    return connection.execute(_SESSIONS.where(wanted)).all()


def count_sessions(connection: Connection) -> int:
    """Count all sessions."""
    return connection.execute(select(func.count()).select_from(Liveness)).scalar_one()


def read_changes(
    connection: Connection, session_ids: Collection[UUID], types: Collection[EventType] = OF_A_SESSION
) -> Sequence[Row[Any]]:
    """Read what changed for some sessions, in the order of the changes: rows of `events`."""
    query = select(Event.__table__)
    query = query.where(Event.session_id.in_(session_ids), Event.type.in_([kind.value for kind in types]))
    return connection.execute(query.order_by(Event.id)).all()


def read_fleet_changes(connection: Connection, types: Collection[EventType]) -> Sequence[Row[Any]]:
    """Read what changed for the whole fleet, as `read_changes` does."""
    query = select(Event.__table__)
    query = query.where(Event.session_id.is_(None), Event.type.in_([kind.value for kind in types]))
    return connection.execute(query.order_by(Event.id)).all()


def read_oldest_time(connection: Connection, since: datetime) -> datetime | None:
    """Read the time of the oldest stored heartbeat or event, of those since a given time.

    Heartbeats and events are deleted at the same age, so between that age and this time nothing happened.
    """
    beat = select(StoredHeartbeat.received_at).where(
        StoredHeartbeat.id >= id_at(since - _DAY), StoredHeartbeat.received_at >= since
    )
    oldest_beat = connection.execute(beat.order_by(StoredHeartbeat.id).limit(1)).scalar()
    oldest_event = connection.execute(select(func.min(Event.occurred_at))).scalar()
    return min((moment for moment in (oldest_beat, oldest_event) if moment is not None), default=None)


def read_heartbeat_times(
    connection: Connection, since: datetime, until: datetime, only: Collection[UUID] = ()
) -> Iterator[HeartbeatTimes]:
    """Yield the times of the heartbeats received in a span (its end too), by session id, then by receipt.

    `only`: the sessions to read; without it, all.
    """
    on_postgresql = connection.dialect.name == "postgresql"
    session, received, seen = "h.session_id", "h.received_at", "h.seen_at"
    if on_postgresql:
        session = f"uuid_send({session})"
        received, seen = (f"CAST(EXTRACT(epoch FROM {name}) * 1000 AS bigint)" for name in (received, seen))
    mark = "%s" if on_postgresql else "?"
    among = f" AND h.session_id IN ({', '.join([mark] * len(only))})" if only else ""
    # All names are ours; values from outside are bound.
    columns = f"SELECT {session} AS s, {received} AS r, {seen} AS n FROM"
    query = (
        f"{columns} heartbeats h WHERE h.id >= {mark} AND h.received_at BETWEEN {mark} AND {mark}{among} "
        f"UNION ALL {columns} stray_heartbeats t JOIN heartbeats h ON h.id = t.id "
        f"WHERE h.id < {mark} AND t.received_at BETWEEN {mark} AND {mark}{among} ORDER BY s, r, n"
    )
    dialect = connection.dialect
    low = Identifier().process_bind_param(id_at(since - _DAY), dialect)
    times = [Instant().process_bind_param(moment, dialect) for moment in (since, until)]
    asked = [Identifier().process_bind_param(key, dialect) for key in only]
    parameters = (low, *times, *asked) * 2
    options = {"stream_results": True, "max_row_buffer": _ROWS_AT_ONCE}
    result = connection.exec_driver_sql(query, parameters, execution_options=options)
    for rows in result.partitions(_ROWS_AT_ONCE):
        yield from rows


def read_heartbeats_near(
    connection: Connection, session_id: UUID, moment: datetime, until: datetime, limit: int
) -> Sequence[Row[Any]]:
    """Read a session's last heartbeats as `read_heartbeats` does, of those that the fleet made just before a time.

    However many there are in all, no more than `NEIGHBOURS` are searched.
    """
    beat = StoredHeartbeat
    latest = id_at(moment + _SKEW)
    before = select(beat.id).where(beat.id <= latest).order_by(beat.id.desc())
    first = connection.execute(before.offset(NEIGHBOURS).limit(1)).scalar()
    since = None if first is None else from_milliseconds(first.int >> 80)
    return _heartbeats(connection, session_id, (first or id_at(_EPOCH), latest), (since or _EPOCH, until), limit)


def read_heartbeats(
    connection: Connection, session_id: UUID, since: datetime, until: datetime, limit: int
) -> Sequence[Row[Any]]:
    """Read a session's last heartbeats received until a given time, the newest last: rows of `heartbeats`.

    Those whose id was made after `since`, and those of wrong clocks that were received after it.
    """
    latest = until + min(_DAY, max(until - since, _SKEW))
    return _heartbeats(connection, session_id, (id_at(since), id_at(latest)), (since, until), limit)


def _heartbeats(
    connection: Connection, session_id: UUID, ids: tuple[UUID, UUID], received: tuple[datetime, datetime], limit: int
) -> Sequence[Row[Any]]:
    beat, stray = StoredHeartbeat, StrayHeartbeat
    strays = select(stray.id).where(stray.received_at.between(*received))
    found = [
        row
        for where in (beat.id.between(*ids), beat.id.in_(strays))
        for row in connection.execute(
            select(beat.__table__)
            .where(where, beat.session_id == session_id, beat.received_at <= received[1])
            .order_by(beat.received_at.desc(), beat.seen_at.desc())
            .limit(limit)
        )
    ]
    by_id = {row.id: row for row in found}
    return sorted(by_id.values(), key=lambda row: (row.received_at, row.seen_at))[-limit:]
