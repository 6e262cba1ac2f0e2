"""Outages: times in which the fleet was not monitored, or could not reach Redis, and how they move deadlines."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, bindparam, insert, select, text

from fleetbeat_worker.database.column_types import Instant
from fleetbeat_worker.database.tables import Liveness, OutageRow
from fleetbeat_worker.rules.enums import EventType
from fleetbeat_worker.rules.liveness import WATCHED
from fleetbeat_worker.rules.spans import EPOCH, Span, from_milliseconds, subtract, to_milliseconds
from fleetbeat_worker.store.events import record_fleet_event
from fleetbeat_worker.store.sessions import lock_sessions

# Built once, here: building it for each batch took longer than reading.
_READ_OUTAGES = (
    select(OutageRow.started_at, OutageRow.ended_at)
    .where(OutageRow.ended_at > bindparam("since", type_=Instant))
    .order_by(OutageRow.started_at)
)


def read_outages(connection: Connection, since: datetime = EPOCH) -> list[Span]:
    """Read the outages that ended after a given time, as starts and ends in milliseconds, in their order."""
    rows = connection.execute(_READ_OUTAGES, {"since": since})
    return [(to_milliseconds(started_at), to_milliseconds(ended_at)) for started_at, ended_at in rows]


def record_outage(connection: Connection, started_at: datetime, ended_at: datetime) -> dict[str, Any]:
    """Record an outage, and move each deadline by the part of it that is after the agent's last heartbeat.

    A deadline before the outage isn't moved: its agent was silent for its whole time while it was monitored, and only
    a backlog in the inbox delayed the verdict.

    Returns the facts of the outage, with the number of deadlines that moved.
    """
    lock_sessions(connection, Liveness.state.in_(WATCHED))
    latest = "MAX" if connection.dialect.name == "sqlite" else "GREATEST"
    since = f"{latest}(registered_at, COALESCE(last_seen_at, registered_at), COALESCE(resumed_at, registered_at))"
    # The function's name is all that differs between the databases.
    statement = text(
        f"UPDATE liveness SET deadline_at = deadline_at + (:ended - {latest}(:started, {since})) "  # noqa: S608
        f"WHERE state IN {WATCHED} AND {since} < :ended AND deadline_at > :started"
    ).bindparams(bindparam("started", type_=Instant), bindparam("ended", type_=Instant))
    moved = connection.execute(statement, {"started": started_at, "ended": ended_at}).rowcount
    connection.execute(insert(OutageRow).values(started_at=started_at, ended_at=ended_at))
    detail = {
        "started_at": started_at.isoformat(),
        "ended_at": ended_at.isoformat(),
        "seconds": round((ended_at - started_at).total_seconds(), 3),
        "deadlines_moved": moved,
    }
    record_fleet_event(connection, EventType.OUTAGE, ended_at, detail)
    return detail


def record_gaps(connection: Connection, gaps: Sequence[Span]) -> None:
    """Record gaps of some seconds in which agents could not reach Redis, without what is recorded already.

    They move no deadlines yet: the sweep that finds a deadline passed moves it, so that only rows of silent agents are
    written.
    """
    if not gaps:
        return
    known = read_outages(connection, from_milliseconds(min(start for start, _ in gaps)))
    new = [
        {"started_at": from_milliseconds(start), "ended_at": from_milliseconds(end)}
        for start, end in subtract(gaps, known)
    ]
    if new:
        connection.execute(insert(OutageRow), new)
