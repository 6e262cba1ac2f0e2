"""Maintenance windows in SQL, and the deadlines that one of them moves."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Table, insert, or_, select, update

from fleetbeat_worker.database import bulk
from fleetbeat_worker.database.tables import Liveness, Maintenance
from fleetbeat_worker.rules.deadlines import DeadlineRule, Unwatched
from fleetbeat_worker.rules.liveness import Promise
from fleetbeat_worker.rules.maintenance_windows import WindowRule
from fleetbeat_worker.rules.spans import from_milliseconds, to_milliseconds
from fleetbeat_worker.sweep.queries import Due

_LIVENESS: Table = Liveness.__table__  # type: ignore[assignment] # a mapped class has a Table

_RULE = ("starts_at", "ends_at", "schedule", "time_zone", "duration_seconds", "reason", "ended_at", "cut_at")


def window_rules(connection: Connection, since: datetime | None = None) -> dict[int, WindowRule]:
    """Return maintenance by its number, in the order of numbers; of what is over only what ended after `since`."""
    query = select(Maintenance.id, *(getattr(Maintenance, name) for name in _RULE)).order_by(Maintenance.id)
    if since is not None:
        query = query.where(or_(Maintenance.ended_at.is_(None), Maintenance.ended_at > since))
        single_over = Maintenance.schedule.is_(None) & (Maintenance.ends_at <= since)
        query = query.where(or_(Maintenance.ends_at.is_(None), ~single_over))
    return {key: WindowRule(**dict(zip(_RULE, row, strict=True))) for key, *row in connection.execute(query)}


def add(connection: Connection, rule: WindowRule, now: datetime) -> int:
    """Store maintenance that somebody asks for; return its number."""
    values: dict[str, Any] = {name: getattr(rule, name) for name in _RULE}
    key = connection.execute(insert(Maintenance).values(created_at=now, **values)).inserted_primary_key
    return int((key or (0,))[0])


def end(connection: Connection, ids: Collection[int], now: datetime) -> None:
    """End maintenance for good."""
    connection.execute(update(Maintenance).where(Maintenance.id.in_(list(ids))).values(ended_at=now))


def cut(connection: Connection, ids: Collection[int], now: datetime) -> None:
    """End the windows of recurring maintenance that run now, and none to come."""
    connection.execute(update(Maintenance).where(Maintenance.id.in_(list(ids))).values(cut_at=now))


def spare(
    connection: Connection, due: Sequence[Due], unwatched: Unwatched, watermark: datetime, missed_limit: int
) -> list[Due]:
    """Of agents that are due (and locked), return those that are due still when all is counted that isn't watched.

    The deadlines of the others move, so that at the end of a window, or of a gap, only the silent are written.
    """
    rules: dict[Promise, DeadlineRule] = {}  # most agents of a fleet promise the same
    left, moved = [], []
    for agent in due:
        since, stored = to_milliseconds(agent.since), to_milliseconds(agent.deadline_at)
        if agent.promise not in rules:
            rules[agent.promise] = DeadlineRule(agent.promise, missed_limit, unwatched)
        start, due_at = rules[agent.promise].clock(since) if unwatched.is_after(since) else (since, stored)
        deadline = max(stored, due_at)
        if deadline != stored:
            moved.append((agent.session_id, deadline))
        deadline_at = from_milliseconds(deadline)
        if deadline_at < watermark:
            cleared_at = from_milliseconds(start) if start != since else None
            left.append(replace(agent, deadline_at=deadline_at, cleared_at=cleared_at))
    bulk.update(connection, _LIVENESS, ("session_id", "deadline_at"), moved)
    return left
