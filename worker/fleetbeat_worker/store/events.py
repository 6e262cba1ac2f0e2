"""Events: recording and reading what changed, and which agents change their state too often."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Protocol
from uuid import UUID

from sqlalchemy import Connection, Row, Table, func, insert, select, text

from fleetbeat_worker.database import bulk
from fleetbeat_worker.database.tables import Event
from fleetbeat_worker.rules.anomalies import WINDOW_INTERVALS, is_flapping
from fleetbeat_worker.rules.enums import EventType
from fleetbeat_worker.rules.liveness import Promise
from fleetbeat_worker.store.sessions import in_chunks


def read_latest_events(
    connection: Connection,
    limit: int,
    *,
    agent_name: str | None = None,
    session_id: UUID | None = None,
    types: Collection[str] = (),
) -> Sequence[Row[Any]]:
    """Read the latest events, the newest last: all columns of `events`.

    `agent_name`, `session_id`, `types`: only the events of that agent, of that session, of these types (`EventType`).
    """
    query = select(Event.__table__).order_by(Event.id.desc()).limit(limit)
    if agent_name is not None:
        query = query.where(Event.agent_name == agent_name)
    if session_id is not None:
        query = query.where(Event.session_id == session_id)
    if types:
        query = query.where(Event.type.in_(types))
    return connection.execute(query).all()[::-1]


def record_fleet_event(connection: Connection, kind: EventType, occurred_at: datetime, detail: dict[str, Any]) -> None:
    """Record an event of the whole fleet."""
    connection.execute(insert(Event).values(type=kind.value, occurred_at=occurred_at, detail=detail))


_EVENTS: Table = Event.__table__  # type: ignore[assignment] # a mapped class has a Table


_ARE_CHANGES = text("events.type IN ('degraded', 'recovered')")  # as in the index, word for word


def read_change_times(
    connection: Connection, ids: Collection[UUID], since: datetime | None, more_than: int
) -> dict[UUID, list[datetime]]:
    """Return when agents became degraded or recovered, of those that did so more often than that since a moment.

    With None, since whenever. They aren't joined to anything: PostgreSQL might sort all ids anew for each row it joins.
    """
    often: list[UUID] = []
    for some in in_chunks(ids):
        query = select(Event.session_id).where(bulk.among(connection, _EVENTS.c.session_id, some), _ARE_CHANGES)
        if since is not None:
            query = query.where(Event.occurred_at > since)
        found = connection.execute(query.group_by(Event.session_id).having(func.count() > more_than))
        often += [session_id for session_id in found.scalars() if session_id is not None]
    times: dict[UUID, list[datetime]] = defaultdict(list)
    for some in in_chunks(often):
        session_id: Any  # events of the fleet have none, those of agents do
        moments = select(Event.session_id, Event.occurred_at).where(_ARE_CHANGES)
        named = bulk.among(connection, _EVENTS.c.session_id, some)
        for session_id, occurred_at in connection.execute(moments.where(named)):
            times[session_id].append(occurred_at)
    return times


def record_agent_events(
    connection: Connection, kind: EventType, events: Sequence[tuple[int, UUID, str, Mapping[str, Any]]]
) -> None:
    """Record one event for each of some agents: its time in milliseconds since 1970, session, name and detail."""
    columns = ("type", "occurred_at", "session_id", "agent_name", "detail")
    bulk.insert(connection, _EVENTS, columns, [(kind.value, *event) for event in events])


class _Changed(Protocol):
    @property
    def session_id(self) -> UUID: ...
    @property
    def promise(self) -> Promise: ...


def find_flapping(
    connection: Connection, changed: Sequence[_Changed], now: datetime, limit: int, *, coming: int = 0
) -> set[UUID]:
    """Return which agents changed their state more often than `limit` allows, `coming` changes of now included.

    `coming` are those that aren't written yet.
    """
    since = flapping_window_start((agent.promise for agent in changed), now)
    times = read_change_times(connection, [agent.session_id for agent in changed], since, limit - coming)
    often = [agent for agent in changed if agent.session_id in times]
    return {
        agent.session_id
        for agent in often
        if is_flapping([*times[agent.session_id], *[now] * coming], agent.promise, now, limit)
    }


def flapping_window_start(promises: Iterable[Promise], now: datetime) -> datetime | None:
    """Return a moment before which no change of agents with these promises counts; None if a schedule says when."""
    intervals = [promise.interval_seconds for promise in promises]
    longest = max((seconds for seconds in intervals if seconds is not None), default=0.0)
    return None if None in intervals else now - timedelta(seconds=WINDOW_INTERVALS * longest)
