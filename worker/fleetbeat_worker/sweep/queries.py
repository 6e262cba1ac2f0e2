"""Reading and writing what a sweep decides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, Select, Table, bindparam, exists, func, select, text

from fleetbeat_worker.database import bulk
from fleetbeat_worker.database.column_types import Instant
from fleetbeat_worker.database.tables import Agent, Event, Liveness
from fleetbeat_worker.rules.enums import EventType
from fleetbeat_worker.rules.liveness import PROMISE_COLUMNS, WATCHED, Promise, State, cached_promise, silent_since
from fleetbeat_worker.rules.spans import to_milliseconds
from fleetbeat_worker.store.sessions import NAMED_COLUMNS, some_at_once

_LIVENESS: Table = Liveness.__table__  # type: ignore[assignment] # a mapped class has a Table
_EVENTS: Table = Event.__table__  # type: ignore[assignment] # as above
_PROMISE: list[Any] = [getattr(Liveness, name) for name in PROMISE_COLUMNS]
_DUE: list[Any] = [
    Agent.session_id,
    Agent.agent_name,
    Agent.project,
    Agent.flapping_at,
    Liveness.last_seen_at,
    Liveness.deadline_at,
    Liveness.registered_at,
    Liveness.resumed_at,
    Liveness.incident_id,
    *_PROMISE,
]


@dataclass(frozen=True, slots=True)
class Due:
    """An agent whose deadline lies before the watermark."""

    session_id: UUID
    agent_name: str
    project: str | None
    flapping_at: datetime | None
    incident_id: int | None
    """Of the open incident that it was silent in before."""
    last_seen_at: datetime | None
    deadline_at: datetime
    since: datetime
    """From when on it is silent."""
    promise: Promise
    registered_at: datetime
    resumed_at: datetime | None
    cleared_at: datetime | None = None
    """When the maintenance ended that started its clock anew since then."""


def _due(row: Sequence[Any]) -> Due:
    session_id, name, project, flapping_at, seen_at, deadline_at, registered_at, resumed_at, *more = row
    incident_id, *promise = more
    return Due(
        session_id=session_id,
        agent_name=name,
        project=project,
        flapping_at=flapping_at,
        incident_id=incident_id,
        last_seen_at=seen_at,
        deadline_at=deadline_at,
        since=silent_since(registered_at, seen_at, resumed_at),
        promise=cached_promise(*promise),
        registered_at=registered_at,
        resumed_at=resumed_at,
    )


def find_due(connection: Connection, watermark: datetime, session_id: UUID | None = None) -> list[Due]:
    """Lock and return the agents whose deadline passed before the watermark; `session_id`: only this one, if it is.

    A row that a batch holds is left out: that batch brings a heartbeat, and the next sweep looks again. So is one that
    was set aside.
    """
    query = _when_due(select(*_DUE), watermark)
    if session_id is not None:
        query = query.where(Liveness.session_id == session_id)
    return [_due(row) for row in connection.execute(query)]


def find_due_ids(connection: Connection, watermark: datetime) -> list[UUID]:
    """Lock the agents that `find_due` returns, and return nothing of them but their sessions."""
    return list(connection.execute(_when_due(select(Agent.session_id), watermark)).scalars())


def _when_due(query: Select[Any], watermark: datetime) -> Select[Any]:
    query = query.join_from(Agent, Liveness, Liveness.session_id == Agent.session_id).order_by(Liveness.session_id)
    # The deadline first: it is the cheaper to compare, and of few rows is the state looked at then. The other way round
    # a scan of a million rows takes half as long again.
    query = query.where(Liveness.deadline_at < watermark, Liveness.state.in_(WATCHED), Agent.unjudged_at.is_(None))
    return query.with_for_update(of=Liveness, skip_locked=True)  # SQLite, which has one writer, leaves that away


def flag(  # noqa: PLR0913 - what the events say
    connection: Connection,
    due: Sequence[Due],
    watermark: datetime,
    now: datetime,
    *,
    backlog: int,
    incident_id: int | None = None,
) -> None:
    """Mark agents as degraded, each with one event. They are locked, so nobody else can have done it.

    `backlog`: how many messages waited in the inbox, for who asks later how the pipeline was. `incident_id` is the
    incident that they went silent in; with None each is told by itself.
    """
    moment = to_milliseconds(now)
    values = {"state": State.DEGRADED.value, "state_changed_at": moment, "incident_id": incident_id}
    bulk.update_all(connection, _LIVENESS, [agent.session_id for agent in due], values)
    of_all = {"watermark": watermark.isoformat(), "swept_at": now.isoformat(), "backlog": backlog}
    if incident_id is not None:
        of_all["incident_id"] = incident_id
    kind, columns = EventType.DEGRADED.value, ("type", "occurred_at", "session_id", "agent_name", "detail")
    events = [
        (
            kind,
            moment,
            agent.session_id,
            agent.agent_name,
            {
                "deadline_at": agent.deadline_at.isoformat(),
                "last_seen_at": agent.last_seen_at.isoformat() if agent.last_seen_at else None,
                "since": agent.since.isoformat(),
                **of_all,
            },
        )
        for agent in due
    ]
    bulk.insert(connection, _EVENTS, columns, events)


_SIGNS: tuple[Any, ...] = (Liveness.registered_at, Liveness.last_seen_at, Liveness.resumed_at)


def _after(connection: Connection, seconds: str) -> str:
    """Return SQL for a time to be added to a moment."""
    return f"make_interval(secs => {seconds})" if connection.dialect.name == "postgresql" else f"1000.0 * {seconds}"


def find_flapping(connection: Connection) -> Sequence[Row[Any]]:
    """Lock and return the agents that are marked as flapping, but for those that a batch holds."""
    query = select(*[*NAMED_COLUMNS, *_PROMISE, *_SIGNS, Agent.stuck_at, Liveness.state])
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
    columns: list[Any] = [*NAMED_COLUMNS, *_PROMISE, Agent.stuck_after, *times, *doing]
    again = select(*columns).join(Liveness, Liveness.session_id == Agent.session_id)
    return [
        row for some in some_at_once(ids) for row in connection.execute(again.where(Agent.session_id.in_(some))).all()
    ]


def find_degraded(connection: Connection, before: datetime) -> Sequence[Row[Any]]:
    """Return the agents that have been degraded since before a moment and are told of by themselves."""
    said = (Agent.current_work, Agent.progress, Agent.summary, Agent.error)
    columns: list[Any] = [*NAMED_COLUMNS, *_PROMISE, *said, *_SIGNS, Liveness.state_changed_at, Liveness.deadline_at]
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


def count_unjudged(connection: Connection) -> int:
    """Return how many agents are set aside."""
    query = select(func.count()).select_from(Agent).where(Agent.unjudged_at.is_not(None))
    return connection.execute(query).scalar_one()


def _locked(connection: Connection, query: Select[Any]) -> Select[Any]:
    """Return a query of `agents` with their liveness, whose rows it locks unless somebody else holds them."""
    query = query.join_from(Agent, Liveness, Liveness.session_id == Agent.session_id)
    if connection.dialect.name == "sqlite":
        return query  # one writer needs no locks, and for the order of the keys it would go through all of `liveness`
    return query.order_by(Liveness.session_id).with_for_update(of=Liveness, skip_locked=True)
