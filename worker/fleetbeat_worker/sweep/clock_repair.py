"""Clock repair: corrects stored times that are in the future after Redis's clock was set back.

An agent that was seen at such a time would stay ok until the clock reaches it again, however long it is silent.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Table, bindparam, case, delete, literal, or_, select, text, update

from fleetbeat_worker.database import bulk
from fleetbeat_worker.database.column_types import Instant
from fleetbeat_worker.database.tables import Agent, Event, Incident, Liveness, Notification, OutageRow
from fleetbeat_worker.downtime.outages import read_outages
from fleetbeat_worker.notifications.outbox import TRIED_FOR
from fleetbeat_worker.rules.deadlines import deadline_of
from fleetbeat_worker.rules.liveness import UNJUDGEABLE, WATCHED, promise_of, silent_since
from fleetbeat_worker.rules.spans import to_milliseconds
from fleetbeat_worker.store.sessions import lock_sessions

_LIVENESS: Table = Liveness.__table__  # type: ignore[assignment] # a mapped class has a Table
_TIMES: tuple[tuple[Any, tuple[str, ...]], ...] = (
    (_LIVENESS, ("registered_at", "last_seen_at", "resumed_at", "state_changed_at")),
    (
        Agent.__table__,
        (
            *("work_said_at", "metadata_said_at", "error_said_at"),
            *("reported_at", "changed_at", "stuck_at", "flapping_at", "paused_at"),
        ),
    ),
    (Event.__table__, ("occurred_at",)),
    (Incident.__table__, ("started_at", "first_silent_at", "last_silent_at")),
)

_LATEST_DEADLINE = {
    "sqlite": ":now + CAST(1000 * (interval_seconds * COALESCE(missed_limit, :limit) + grace_seconds) AS INTEGER)",
    "postgresql": ":now + make_interval(secs => interval_seconds * COALESCE(missed_limit, :limit) + grace_seconds)",
}
"""The latest deadline that an agent with an interval can have: that of one seen now."""


def correct_future_times(connection: Connection, now: datetime, missed_limit: int) -> None:
    """Set all times after `now` to `now`, and bring deadlines forward to the latest that they can be."""
    lock_sessions(connection)
    connection.execute(delete(OutageRow).where(OutageRow.started_at >= now))
    connection.execute(update(OutageRow).where(OutageRow.ended_at > now).values(ended_at=now))
    for table, names in _TIMES:
        columns = [table.c[name] for name in names]
        values = {column: case((column > now, literal(now, Instant)), else_=column) for column in columns}
        connection.execute(update(table).where(or_(*(column > now for column in columns))).values(values))
    # Otherwise they would not be sent until the clock reaches their time again.
    due = {"created_at": now, "due_at": now, "expires_at": now + TRIED_FOR}
    connection.execute(update(Notification).where(Notification.created_at > now).values(due))
    latest = _LATEST_DEADLINE[connection.dialect.name]
    statement = text(
        f"UPDATE liveness SET deadline_at = {latest} "  # noqa: S608 - our own text
        f"WHERE state IN {WATCHED} AND interval_seconds IS NOT NULL AND deadline_at > {latest}"
    ).bindparams(bindparam("now", type_=Instant))
    connection.execute(statement, {"now": now, "limit": missed_limit})
    _correct_schedules(connection, now, missed_limit)


def _correct_schedules(connection: Connection, now: datetime, missed_limit: int) -> None:
    query = select(_LIVENESS).where(Liveness.state.in_(WATCHED), Liveness.schedule.is_not(None))
    rows = connection.execute(query.where(Liveness.deadline_at > now)).all()
    if not rows:
        return
    starts = [silent_since(row.registered_at, row.last_seen_at, row.resumed_at) for row in rows]
    outages = read_outages(connection, min(starts))
    earlier: list[tuple[Any, int]] = []
    for row, since in zip(rows, starts, strict=True):
        try:
            deadline = deadline_of(promise_of(row), to_milliseconds(since), missed_limit, outages)
        except UNJUDGEABLE:
            continue  # the sweep that finds its deadline passed marks it as unjudged
        if deadline < to_milliseconds(row.deadline_at):
            earlier.append((row.session_id, deadline))
    bulk.update(connection, _LIVENESS, ("session_id", "deadline_at"), earlier)
