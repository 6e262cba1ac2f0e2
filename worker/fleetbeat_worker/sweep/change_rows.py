"""Reading and writing what a sweep finds beside silence: who flaps, who is stuck, whom it reminds of."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, Select, Table, bindparam, exists, func, select, text

from fleetbeat_worker.database import bulk
from fleetbeat_worker.database.column_types import Instant
from fleetbeat_worker.database.tables import Agent, Event, Liveness
from fleetbeat_worker.rules.enums import EventType
from fleetbeat_worker.rules.liveness import State
from fleetbeat_worker.rules.spans import to_milliseconds

_AGENTS: Table = Agent.__table__  # type: ignore[assignment] # a mapped class has a Table
_EVENTS: Table = Event.__table__  # type: ignore[assignment] # as above

IDS_AT_ONCE = 10_000
"""How many sessions one query names: SQLite takes 32,766 parameters at most."""

_ARE_CHANGES = text("events.type IN ('degraded', 'recovered')")  # as in the index, word for word
_PROMISE: tuple[Any, ...] = (
    Liveness.interval_seconds,
    Liveness.schedule,
    Liveness.time_zone,
    Liveness.grace_seconds,
    Liveness.missed_limit,
)
_SIGNS: tuple[Any, ...] = (Liveness.registered_at, Liveness.last_seen_at, Liveness.resumed_at)
_NAMED: tuple[Any, ...] = (Agent.session_id, Agent.agent_name, Agent.project)
_NAMES = select(*_NAMED)


def _after(connection: Connection, seconds: str) -> str:
    """Return SQL for a time to be added to a moment."""
    return f"make_interval(secs => {seconds})" if connection.dialect.name == "postgresql" else f"1000.0 * {seconds}"


def _some_at_once(ids: Collection[UUID]) -> Iterator[list[UUID]]:
    listed = list(ids)
    return (listed[start : start + IDS_AT_ONCE] for start in range(0, len(listed), IDS_AT_ONCE))


def change_times(
    connection: Connection, ids: Collection[UUID], since: datetime | None, more_than: int
) -> dict[UUID, list[datetime]]:
    """Return when agents became degraded or recovered, of those that did so more often than that since a moment.

    With None, since whenever. They aren't joined to anything: PostgreSQL might sort all ids anew for each row it joins.
    """
    often: list[UUID] = []
    for some in _some_at_once(ids):
        query = select(Event.session_id).where(bulk.among(connection, _EVENTS.c.session_id, some), _ARE_CHANGES)
        if since is not None:
            query = query.where(Event.occurred_at > since)
        found = connection.execute(query.group_by(Event.session_id).having(func.count() > more_than))
        often += [session_id for session_id in found.scalars() if session_id is not None]
    times: dict[UUID, list[datetime]] = defaultdict(list)
    for some in _some_at_once(often):
        session_id: Any  # events of the fleet have none, those of agents do
        moments = select(Event.session_id, Event.occurred_at).where(_ARE_CHANGES)
        named = bulk.among(connection, _EVENTS.c.session_id, some)
        for session_id, occurred_at in connection.execute(moments.where(named)):
            times[session_id].append(occurred_at)
    return times


def find_flapping(connection: Connection) -> Sequence[Row[Any]]:
    """Lock and return the agents that are marked as flapping, but for those that a batch holds."""
    query = select(*[*_NAMED, *_PROMISE, *_SIGNS, Agent.stuck_at, Liveness.state])
    query = _locked(
        connection,
        query.where(Agent.flapping_at.is_not(None), Agent.unjudged_at.is_(None), Liveness.state != State.ENDED.value),
    )
    return connection.execute(query).all()


def find_stuck_candidates(connection: Connection, watermark: datetime, fleet_limit: int | None) -> Sequence[Row[Any]]:
    """Lock and return the agents that are ok and have said nothing new for as long as they may, or nearly.

    What moves the moment (an outage, say) is left to the caller. `fleet_limit`: for agents without one of their own.
    """
    if fleet_limit is None and not connection.execute(select(exists().where(Agent.stuck_after > 0))).scalar_one():
        return ()
    allowed = _after(
        connection, "(COALESCE(agents.stuck_after, :fleet) * liveness.interval_seconds + liveness.grace_seconds)"
    )
    query = select(Agent.session_id).where(
        Liveness.state == State.OK.value,
        Liveness.interval_seconds.is_not(None),
        Agent.stuck_at.is_(None),
        Agent.unjudged_at.is_(None),
        func.coalesce(Agent.stuck_after, fleet_limit or 0) > 0,
        text(f"agents.changed_at + {allowed} < :watermark").bindparams(
            bindparam("watermark", watermark, type_=Instant), fleet=fleet_limit or 0
        ),
    )
    if fleet_limit is None:
        query = query.where(Agent.stuck_after.is_not(None))
    ids = connection.execute(_locked(connection, query)).scalars().all()
    # Anew, under the locks: a batch may have changed `agents` just before it let go of its rows.
    doing = (Agent.progress, Agent.work_item_id, Agent.status, Agent.summary, Agent.current_work)
    times = (Agent.changed_at, Liveness.state_changed_at, *_SIGNS)
    columns: list[Any] = [*_NAMED, *_PROMISE, Agent.stuck_after, *times, *doing]
    again = select(*columns).join(Liveness, Liveness.session_id == Agent.session_id)
    return [
        row for some in _some_at_once(ids) for row in connection.execute(again.where(Agent.session_id.in_(some))).all()
    ]


def find_degraded(connection: Connection, before: datetime) -> Sequence[Row[Any]]:
    """Return the agents that have been degraded since before a moment and are told of by themselves."""
    said = (Agent.current_work, Agent.progress, Agent.summary, Agent.error)
    columns: list[Any] = [*_NAMED, *_PROMISE, *said, *_SIGNS, Liveness.state_changed_at, Liveness.deadline_at]
    query = (
        select(*columns)
        .join(Liveness, Liveness.session_id == Agent.session_id)
        .where(
            Liveness.state == State.DEGRADED.value,
            Liveness.state_changed_at <= before,
            Agent.flapping_at.is_(None),
            Liveness.incident_id.is_(None),
            Agent.unjudged_at.is_(None),
        )
    )
    return connection.execute(query).all()


def work_of(connection: Connection, ids: Collection[UUID]) -> dict[UUID, dict[str, Any]]:
    """Return what agents last said of their work."""
    names = ("current_work", "progress", "summary", "error")
    columns = [_AGENTS.c[name] for name in ("session_id", *names)]
    return {
        session_id: dict(zip(names, said, strict=True))
        for some in _some_at_once(ids)
        for session_id, said in bulk.select(connection, columns, some)
    }


def names_of(connection: Connection, ids: Collection[UUID]) -> list[Row[Any]]:
    """Return agents' sessions, names and projects."""
    return [row for some in _some_at_once(ids) for row in connection.execute(_NAMES.where(Agent.session_id.in_(some)))]


def count_unjudged(connection: Connection) -> int:
    """Return how many agents are set aside."""
    query = select(func.count()).select_from(Agent).where(Agent.unjudged_at.is_not(None))
    return connection.execute(query).scalar_one()


def mark(connection: Connection, column: str, ids: Collection[UUID], moment: datetime | None) -> None:
    """Write one of the moments of `agents`, or None, for some sessions that are locked."""
    value = None if moment is None else to_milliseconds(moment)
    bulk.update(connection, _AGENTS, ("session_id", column), [(session_id, value) for session_id in ids])


def record_all(
    connection: Connection, kind: EventType, now: datetime, found: Sequence[tuple[UUID, str, Mapping[str, Any]]]
) -> None:
    """Record one event for each of some agents: session, name and detail."""
    rows = [
        {
            "type": kind.value,
            "occurred_at": to_milliseconds(now),
            "session_id": session_id,
            "agent_name": name,
            "detail": dict(detail),
        }
        for session_id, name, detail in found
    ]
    bulk.insert_rows(connection, _EVENTS, rows)


def _locked(connection: Connection, query: Select[Any]) -> Select[Any]:
    """Return a query of `agents` with their liveness, whose rows it locks unless somebody else holds them."""
    query = query.join_from(Agent, Liveness, Liveness.session_id == Agent.session_id)
    if connection.dialect.name == "sqlite":
        return query  # one writer needs no locks, and for the order of the keys it would go through all of `liveness`
    return query.order_by(Liveness.session_id).with_for_update(of=Liveness, skip_locked=True)
