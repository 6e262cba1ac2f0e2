"""Pauses: agents that are deliberately not judged for a time. At the end of a pause, silence counts from there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, Row, Table, exists, select, update

from fleetbeat_worker.database import bulk
from fleetbeat_worker.database.tables import Agent, Liveness
from fleetbeat_worker.downtime.outages import read_outages
from fleetbeat_worker.rules.deadlines import deadline_of
from fleetbeat_worker.rules.enums import EventType
from fleetbeat_worker.rules.liveness import UNJUDGEABLE, State, promise_of, silent_since
from fleetbeat_worker.rules.spans import to_milliseconds
from fleetbeat_worker.store.events import record_agent_events
from fleetbeat_worker.store.sessions import SESSIONS

_LIVENESS: Table = Liveness.__table__  # type: ignore[assignment] # a mapped class has a Table

AT_ONCE = 10_000
"""How many sessions are paused or resumed in one transaction: databases limit the parameters of a statement."""


@dataclass(frozen=True, slots=True)
class PausedAgent:
    """A session that was paused or resumed."""

    session_id: UUID
    agent_name: str
    state: State
    """Its state afterwards."""


def is_live(connection: Connection, agent: str | UUID) -> bool:
    """Whether there is a live session of a name, or with a session id."""
    return bool(connection.execute(select(exists().where(_is(agent), Agent.ended_at.is_(None)))).scalar())


def pause(
    connection: Connection, agent: str | UUID, now: datetime, until: datetime | None, reason: str | None
) -> list[PausedAgent]:
    """Pause the live sessions of a name, or one session, with an event each; return them.

    Sessions that are paused already get the new end and reason.
    """
    rows = _lock(connection, _is(agent), Agent.ended_at.is_(None))
    ids = [row.session_id for row in rows]
    running = [row.session_id for row in rows if row.state != State.PAUSED]
    connection.execute(update(Agent).where(Agent.session_id.in_(ids)).values(paused_until=until, pause_reason=reason))
    connection.execute(update(Agent).where(Agent.session_id.in_(running)).values(paused_at=now))
    # A member of an incident stays a member that is back: if it falls silent again, it must not count as one more.
    paused = {"state": State.PAUSED.value, "state_changed_at": now}
    connection.execute(update(Liveness).where(Liveness.session_id.in_(running)).values(paused))
    detail = {"until": until.isoformat() if until else None, "reason": reason}
    events = [_event(row, to_milliseconds(now), detail | {"was": row.state}) for row in rows]
    record_agent_events(connection, EventType.PAUSED, events)
    return [PausedAgent(row.session_id, row.agent_name, State.PAUSED) for row in rows]


def resume(connection: Connection, agent: str | UUID, now: datetime, missed_limit: int) -> list[PausedAgent]:
    """End the pause of the sessions of a name, or of one session, with an event each; return those that were paused."""
    return _resume(connection, _lock(connection, _is(agent), Liveness.state == State.PAUSED.value), now, missed_limit)


def resume_due(connection: Connection, now: datetime, missed_limit: int) -> list[PausedAgent]:
    """End the pauses whose time is over, each as of its own end.

    A row that a batch has locked is left to the next sweep, which resumes it as of the same time.
    """
    if not connection.execute(select(exists().where(Agent.paused_until <= now))).scalar():  # most often, by an index
        return []
    due = (Agent.paused_until <= now, Liveness.state == State.PAUSED.value)
    return _resume(connection, _lock(connection, *due, skip_locked=True), now, missed_limit)


def _is(agent: str | UUID) -> ColumnElement[bool]:
    return Agent.agent_name == agent if isinstance(agent, str) else Agent.session_id == agent


def _lock(connection: Connection, *which: ColumnElement[bool], skip_locked: bool = False) -> Sequence[Row[Any]]:
    """Lock sessions in the order of their keys, as all transactions do, and read all columns of both tables."""
    query = SESSIONS.where(*which)
    if connection.dialect.name == "postgresql":
        ids = connection.execute(query.with_only_columns(Agent.session_id).limit(AT_ONCE)).scalars()
        lock = select(Liveness.session_id).where(Liveness.session_id.in_(list(ids))).order_by(Liveness.session_id)
        locked = connection.execute(lock.with_for_update(skip_locked=skip_locked)).scalars()
        # Read under the lock: a pause may have been prolonged, or the session may have ended, in between.
        query = query.where(Agent.session_id.in_(list(locked)))
    return connection.execute(query.order_by(Agent.session_id).limit(AT_ONCE)).all()


def _resume(connection: Connection, rows: Sequence[Row[Any]], now: datetime, missed_limit: int) -> list[PausedAgent]:
    if not rows:
        return []
    ends = [min(now, row.paused_until or now) for row in rows]
    outages = read_outages(connection, min(ends))
    resumed, changed, events = [], [], []
    for row, resumed_at in zip(rows, ends, strict=True):
        since = to_milliseconds(silent_since(row.registered_at, row.last_seen_at, resumed_at))
        # A heartbeat before its session was registered again doesn't make it ok.
        seen = row.last_seen_at is not None and row.last_seen_at >= row.registered_at
        state = State.OK if seen else State.PENDING
        at = to_milliseconds(resumed_at)
        try:
            deadline = deadline_of(promise_of(row), since, missed_limit, outages)
        except UNJUDGEABLE:
            deadline = since  # the sweep that finds it passed marks the agent as unjudged
        changed.append((row.session_id, state.value, at, deadline, at))
        detail = {"paused_at": row.paused_at.isoformat() if row.paused_at else None, "reason": row.pause_reason}
        events.append(_event(row, at, detail))
        resumed.append(PausedAgent(row.session_id, row.agent_name, state))
    columns = ("session_id", "state", "state_changed_at", "deadline_at", "resumed_at")
    bulk.update(connection, _LIVENESS, columns, changed)
    nothing = {"paused_at": None, "paused_until": None, "pause_reason": None}
    connection.execute(update(Agent).where(Agent.session_id.in_([row.session_id for row in rows])).values(nothing))
    record_agent_events(connection, EventType.RESUMED, events)
    return resumed


def _event(row: Row[Any], occurred_at: int, detail: dict[str, Any]) -> tuple[int, UUID, str, dict[str, Any]]:
    known = {name: value for name, value in detail.items() if value is not None}
    return occurred_at, row.session_id, row.agent_name, known
