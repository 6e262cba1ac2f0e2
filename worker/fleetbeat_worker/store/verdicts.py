"""Reading and writing what a sweep decides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import bindparam, insert, select, text

from fleetbeat_shared.liveness import State
from fleetbeat_worker.column_types import Instant, to_milliseconds
from fleetbeat_worker.store import bulk
from fleetbeat_worker.tables import Agent, Event, EventType, Liveness, OutageRow

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from uuid import UUID

    from sqlalchemy import Connection

_WATCHED = (State.PENDING.value, State.OK.value)
"""The states whose deadline counts."""


@dataclass(frozen=True, slots=True)
class Due:
    """An agent whose deadline lies before the watermark."""

    session_id: UUID
    agent_name: str
    last_seen_at: datetime | None
    deadline_at: datetime


def record_outage(connection: Connection, started_at: datetime, ended_at: datetime) -> int:
    """Record that nobody watched for a time, and move each deadline by what of it lies after the agent's last sign.

    A deadline that had passed before stays: its agent was silent for the whole of its time while somebody watched, and
    only what waited in the inbox kept the verdict back.

    Returns how many deadlines moved.
    """
    if connection.dialect.name == "postgresql":
        # As everybody does: in the order of the keys, so that nobody waits in a circle.
        lock = select(Liveness.session_id).where(Liveness.state.in_(_WATCHED)).order_by(Liveness.session_id)
        connection.execute(lock.with_for_update()).fetchall()
    latest = "MAX" if connection.dialect.name == "sqlite" else "GREATEST"
    since = f"{latest}(registered_at, COALESCE(last_seen_at, registered_at))"
    # The function's name is all that differs between the databases.
    statement = text(
        f"UPDATE liveness SET deadline_at = deadline_at + (:ended - {latest}(:started, {since})) "  # noqa: S608
        f"WHERE state IN {_WATCHED} AND {since} < :ended AND deadline_at > :started"
    ).bindparams(bindparam("started", type_=Instant), bindparam("ended", type_=Instant))
    moved = connection.execute(statement, {"started": started_at, "ended": ended_at}).rowcount
    connection.execute(insert(OutageRow).values(started_at=started_at, ended_at=ended_at))
    detail = {
        "started_at": started_at.isoformat(),
        "ended_at": ended_at.isoformat(),
        "seconds": round((ended_at - started_at).total_seconds(), 3),
        "deadlines_moved": moved,
    }
    record(connection, EventType.OUTAGE, ended_at, detail)
    return moved


def record(connection: Connection, kind: EventType, occurred_at: datetime, detail: dict[str, Any]) -> None:
    """Record an event of the whole fleet."""
    connection.execute(insert(Event).values(type=kind.value, occurred_at=occurred_at, detail=detail))


def find_due(connection: Connection, watermark: datetime) -> list[Due]:
    """Lock and return the agents whose deadline passed before the watermark.

    A row that a batch holds is left out: that batch brings a heartbeat, and the next sweep looks again.
    """
    query = (
        select(Agent.session_id, Agent.agent_name, Liveness.last_seen_at, Liveness.deadline_at)
        .join(Liveness, Liveness.session_id == Agent.session_id)
        .where(Liveness.state.in_(_WATCHED), Liveness.deadline_at < watermark)
        .order_by(Liveness.session_id)
    )
    if connection.dialect.name == "postgresql":
        query = query.with_for_update(of=Liveness, skip_locked=True)
    return [Due(*row) for row in connection.execute(query)]


def flag(connection: Connection, due: Sequence[Due], watermark: datetime, now: datetime) -> None:
    """Mark agents as degraded, each with one event. They are locked, so nobody else can have done it."""
    rows = [(agent.session_id, State.DEGRADED.value, to_milliseconds(now)) for agent in due]
    columns = ("session_id", "state", "state_changed_at")
    bulk.update(connection, Liveness.__table__, columns, rows)  # type: ignore[arg-type] # a mapped class has a Table
    events = [
        {
            "type": EventType.DEGRADED.value,
            "occurred_at": to_milliseconds(now),
            "session_id": agent.session_id,
            "agent_name": agent.agent_name,
            "detail": {
                "deadline_at": agent.deadline_at.isoformat(),
                "last_seen_at": agent.last_seen_at.isoformat() if agent.last_seen_at else None,
                "watermark": watermark.isoformat(),
            },
        }
        for agent in due
    ]
    bulk.insert_rows(connection, Event.__table__, events)  # type: ignore[arg-type] # as above
