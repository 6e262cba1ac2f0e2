"""Queries of the sweep: overdue, flapping, perhaps stuck, and degraded agents, and the flags of the overdue ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, Select, Table, bindparam, exists, func, select, text

from fleetbeat_worker.database import bulk
from fleetbeat_worker.database.column_types import Instant
from fleetbeat_worker.database.tables import Agent, Liveness
from fleetbeat_worker.notifications.notice import promise_facts, silence_facts
from fleetbeat_worker.rules.enums import EventType
from fleetbeat_worker.rules.liveness import PROMISE_COLUMNS, WATCHED, Promise, State, cached_promise, silent_since
from fleetbeat_worker.rules.spans import to_milliseconds
from fleetbeat_worker.store.events import record_agent_events
from fleetbeat_worker.store.sessions import in_chunks

_LIVENESS: Table = Liveness.__table__  # type: ignore[assignment] # a mapped class has a Table


@dataclass(frozen=True, slots=True)
class SweptAgent:
    """A live session as a sweep reads it: what overdue agents are judged and notified by."""

    session_id: UUID
    agent_name: str
    project: str | None
    flapping_at: datetime | None
    registered_at: datetime
    last_seen_at: datetime | None
    resumed_at: datetime | None
    deadline_at: datetime
    incident_id: int | None
    promise: Promise
    cleared_at: datetime | None
    """The end of the maintenance window from which its silence counts, if it does; not in the database."""

    @property
    def since(self) -> datetime:
        """From when its silence counts, without maintenance."""
        return silent_since(self.registered_at, self.last_seen_at, self.resumed_at)

    def notice_facts(self, missed_limit: int) -> dict[str, Any]:
        """Derive the facts of its notices about silence and promise; `missed_limit` is the fleet's."""
        silence = silence_facts(self.registered_at, self.last_seen_at, self.resumed_at, self.cleared_at)
        return silence | promise_facts(self.promise, missed_limit)


@dataclass(frozen=True, slots=True)
class ReportedAgent(SweptAgent):
    """A live session with its state and what it reports: more than overdue agents need, who may be the whole fleet."""

    state: str
    state_changed_at: datetime
    stuck_at: datetime | None
    stuck_after: int | None
    changed_at: datetime | None
    progress: str | None
    work_item_id: str | None
    status: str | None


_NAMES = [field.name for field in fields(SweptAgent)[:-2]]
_REPORTED = [field.name for field in fields(ReportedAgent)[len(fields(SweptAgent)) :]]
_PLACE = len(_NAMES)
_END = _PLACE + len(PROMISE_COLUMNS)


def _columns(names: Iterable[str]) -> list[Any]:
    return [getattr(Agent if hasattr(Agent, name) else Liveness, name) for name in names]


_SWEPT = select(*_columns((*_NAMES, *PROMISE_COLUMNS))).join_from(
    Agent, Liveness, Liveness.session_id == Agent.session_id
)
_REPORTED_AGENTS = _SWEPT.add_columns(*_columns(_REPORTED))


def _swept(row: Row[Any]) -> SweptAgent:
    return SweptAgent(*(*row[:_PLACE], cached_promise(*row[_PLACE:]), None))


def _reported(row: Row[Any]) -> ReportedAgent:
    return ReportedAgent(*(*row[:_PLACE], cached_promise(*row[_PLACE:_END]), None, *row[_END:]))


def find_overdue(connection: Connection, watermark: datetime, session_id: UUID | None = None) -> list[SweptAgent]:
    """Lock and read the agents whose deadline is before the watermark; with `session_id`, only that one.

    A row that a batch has locked is skipped: the batch brings a heartbeat, and the next sweep reads the row again. An
    agent that can't be judged is skipped, too.
    """
    query = _overdue(_SWEPT, watermark)
    if session_id is not None:
        query = query.where(Liveness.session_id == session_id)
    return [_swept(row) for row in connection.execute(query)]


def find_overdue_ids(connection: Connection, watermark: datetime) -> list[UUID]:
    """Lock the agents that `find_overdue` reads, and read only their session ids."""
    return list(connection.execute(_overdue(_SWEPT.with_only_columns(Agent.session_id), watermark)).scalars())


def _overdue(query: Select[Any], watermark: datetime) -> Select[Any]:
    # The deadline first: it is cheaper to compare, so that the state is looked at in few rows. In the other order a
    # scan of a million rows takes half as long again.
    query = query.where(Liveness.deadline_at < watermark, Liveness.state.in_(WATCHED), Agent.unjudged_at.is_(None))
    # SQLite has one writer, and SQLAlchemy omits the lock there.
    return query.order_by(Liveness.session_id).with_for_update(of=Liveness, skip_locked=True)


def flag(  # noqa: PLR0913 - the columns of the events
    connection: Connection,
    overdue: Sequence[SweptAgent],
    watermark: datetime,
    now: datetime,
    *,
    backlog: int,
    incident_id: int | None = None,
) -> None:
    """Mark locked agents as degraded, and record one event for each.

    `backlog`: how many messages waited in the inbox, which `fleetbeat explain` shows. `incident_id`: the incident that
    the agents belong to; None if each has a notification of its own.
    """
    moment = to_milliseconds(now)
    values = {"state": State.DEGRADED.value, "state_changed_at": moment, "incident_id": incident_id}
    bulk.update_all(connection, _LIVENESS, [agent.session_id for agent in overdue], values)
    common = {"watermark": watermark.isoformat(), "swept_at": now.isoformat(), "backlog": backlog}
    if incident_id is not None:
        common["incident_id"] = incident_id
    details = (
        {
            "deadline_at": agent.deadline_at.isoformat(),
            "last_seen_at": agent.last_seen_at.isoformat() if agent.last_seen_at else None,
            "since": agent.since.isoformat(),
            **common,
        }
        for agent in overdue
    )
    events = [
        (moment, agent.session_id, agent.agent_name, detail) for agent, detail in zip(overdue, details, strict=True)
    ]
    record_agent_events(connection, EventType.DEGRADED, events)


def find_flapping_agents(connection: Connection) -> list[ReportedAgent]:
    """Lock and read the agents that are marked as flapping, except those that a batch has locked."""
    query = _REPORTED_AGENTS.where(
        Agent.flapping_at.is_not(None), Agent.unjudged_at.is_(None), Liveness.state != State.ENDED.value
    )
    return [_reported(row) for row in connection.execute(_locked(connection, query))]


def find_stuck_candidates(connection: Connection, watermark: datetime, fleet_limit: int | None) -> list[ReportedAgent]:
    """Lock and read the agents that are ok and have reported no change for their limit of intervals and the grace.

    Outages and maintenance are not excluded yet. `fleet_limit` is for agents without a limit of their own.
    """
    if fleet_limit is None and not connection.execute(select(exists().where(Agent.stuck_after > 0))).scalar_one():
        return []
    seconds = "(COALESCE(agents.stuck_after, :fleet) * liveness.interval_seconds + liveness.grace_seconds)"
    on_postgresql = connection.dialect.name == "postgresql"
    allowed = f"make_interval(secs => {seconds})" if on_postgresql else f"1000.0 * {seconds}"
    query = _REPORTED_AGENTS.with_only_columns(Agent.session_id).where(
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
    # Read under the locks: a batch may have changed `agents` just before it released its rows.
    return [
        _reported(row)
        for some in in_chunks(ids)
        for row in connection.execute(_REPORTED_AGENTS.where(Agent.session_id.in_(some)))
    ]


def find_degraded(connection: Connection, before: datetime) -> list[ReportedAgent]:
    """Read the agents degraded since before a given time, except flapping ones and members of an incident."""
    query = _REPORTED_AGENTS.where(
        Liveness.state == State.DEGRADED.value,
        Liveness.state_changed_at <= before,
        Agent.flapping_at.is_(None),
        Liveness.incident_id.is_(None),
        Agent.unjudged_at.is_(None),
    )
    return [_reported(row) for row in connection.execute(query)]


def count_unjudged(connection: Connection) -> int:
    """Count the agents that can't be judged."""
    query = select(func.count()).select_from(Agent).where(Agent.unjudged_at.is_not(None))
    return connection.execute(query).scalar_one()


def _locked(connection: Connection, query: Select[Any]) -> Select[Any]:
    """Add a lock on the rows of `liveness`; rows that another transaction has locked are skipped."""
    if connection.dialect.name == "sqlite":
        return query  # one writer needs no locks, and ordering by key would scan all of `liveness`
    return query.order_by(Liveness.session_id).with_for_update(of=Liveness, skip_locked=True)
