"""Silencing agents on purpose, and ending that: at the end of a pause an agent's clock starts anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, Row, Select, Table, exists, select, update

from fleetbeat_worker.database import bulk
from fleetbeat_worker.database.tables import Agent, Liveness
from fleetbeat_worker.downtime.outages import read_outages
from fleetbeat_worker.rules.deadlines import deadline_of
from fleetbeat_worker.rules.enums import EventType
from fleetbeat_worker.rules.liveness import UNJUDGEABLE, State, promise_of, silent_since
from fleetbeat_worker.rules.spans import to_milliseconds
from fleetbeat_worker.store.events import record_agent_events

_LIVENESS: Table = Liveness.__table__  # type: ignore[assignment] # a mapped class has a Table
_SESSIONS: Select[Any] = select(
    Agent.__table__, *(column for column in _LIVENESS.columns if not column.primary_key)
).join(Liveness, Liveness.session_id == Agent.session_id)

AT_ONCE = 10_000
"""How many sessions are paused or resumed in one transaction: databases bound the parameters of a statement."""


@dataclass(frozen=True, slots=True)
class PausedAgent:
    """A session that was paused or resumed."""

    session_id: UUID
    agent_name: str
    state: State
    """As it is now."""


def _whose(asked: str | UUID) -> ColumnElement[bool]:
    return Agent.agent_name == asked if isinstance(asked, str) else Agent.session_id == asked


def _locked(connection: Connection, *which: ColumnElement[bool], skip_locked: bool = False) -> Sequence[Row[Any]]:
    """Lock sessions in the order of their keys, as everybody does, and return all columns of both tables."""
    query = _SESSIONS.where(*which)
    if connection.dialect.name == "postgresql":
        ids = connection.execute(query.with_only_columns(Agent.session_id).limit(AT_ONCE)).scalars()
        lock = select(Liveness.session_id).where(Liveness.session_id.in_(list(ids))).order_by(Liveness.session_id)
        locked = connection.execute(lock.with_for_update(skip_locked=skip_locked)).scalars()
        # Read anew under the lock: a pause may have been prolonged, or the session have ended, in between.
        query = query.where(Agent.session_id.in_(list(locked)))
    return connection.execute(query.order_by(Agent.session_id).limit(AT_ONCE)).all()


def is_live(connection: Connection, asked: str | UUID) -> bool:
    """Return whether a name has a live session, or a session is live."""
    return bool(connection.execute(select(exists().where(_whose(asked), Agent.ended_at.is_(None)))).scalar())


def pause(
    connection: Connection, asked: str | UUID, now: datetime, until: datetime | None, reason: str | None
) -> list[PausedAgent]:
    """Pause the live sessions of a name, or one session, each with an event; one that is paused gets the new end.

    Returns them; none if none is live.
    """
    rows = _locked(connection, _whose(asked), Agent.ended_at.is_(None))
    ids = [row.session_id for row in rows]
    fresh = [row.session_id for row in rows if row.state != State.PAUSED]
    connection.execute(update(Agent).where(Agent.session_id.in_(ids)).values(paused_until=until, pause_reason=reason))
    connection.execute(update(Agent).where(Agent.session_id.in_(fresh)).values(paused_at=now))
    # It stays a member of the incident that it may have gone silent in, as one that is back: silent once more, it must
    # not be counted as one more agent.
    paused = {"state": State.PAUSED.value, "state_changed_at": now}
    connection.execute(update(Liveness).where(Liveness.session_id.in_(fresh)).values(paused))
    detail = {"until": until.isoformat() if until else None, "reason": reason}
    events = [_event(row, to_milliseconds(now), detail | {"was": row.state}) for row in rows]
    record_agent_events(connection, EventType.PAUSED, events)
    return [PausedAgent(row.session_id, row.agent_name, State.PAUSED) for row in rows]


def resume(connection: Connection, asked: str | UUID, now: datetime, missed_limit: int) -> list[PausedAgent]:
    """End the pauses of a name's live sessions, or of one session; return them, none if none was paused."""
    return _resume(
        connection, _locked(connection, _whose(asked), Liveness.state == State.PAUSED.value), now, missed_limit
    )


def resume_due(connection: Connection, now: datetime, missed_limit: int) -> list[PausedAgent]:
    """End the pauses whose time is over, each as of its own end.

    A row that a batch holds is left to the next sweep, which resumes it as of the same moment.
    """
    if not connection.execute(select(exists().where(Agent.paused_until <= now))).scalar():  # most often, by an index
        return []
    due = (Agent.paused_until <= now, Liveness.state == State.PAUSED.value)
    return _resume(connection, _locked(connection, *due, skip_locked=True), now, missed_limit)


def _resume(connection: Connection, rows: Sequence[Row[Any]], now: datetime, missed_limit: int) -> list[PausedAgent]:
    if not rows:
        return []
    ends = [min(now, row.paused_until or now) for row in rows]
    outages = read_outages(connection, min(ends))
    resumed, changed, events = [], [], []
    for row, resumed_at in zip(rows, ends, strict=True):
        promise = promise_of(row)
        since = to_milliseconds(silent_since(row.registered_at, row.last_seen_at, resumed_at))
        # What was heard of it before its session was opened anew was of an earlier life.
        heard = row.last_seen_at is not None and row.last_seen_at >= row.registered_at
        state = State.OK if heard else State.PENDING
        at = to_milliseconds(resumed_at)
        try:
            due = deadline_of(promise, since, missed_limit, outages)
        except UNJUDGEABLE:
            due = since  # the sweep that finds it passed sets the agent aside, and goes on with the others
        changed.append((row.session_id, state.value, at, due, at))
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
