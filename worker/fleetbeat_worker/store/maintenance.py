"""Maintenance windows in SQL, and the deadlines that one of them moves."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, insert, or_, select, update

from fleetbeat_shared.liveness import Promise, State, silent_since
from fleetbeat_shared.maintenance import WindowRule
from fleetbeat_worker.column_types import from_milliseconds, to_milliseconds
from fleetbeat_worker.deadlines import deadline_of
from fleetbeat_worker.store import bulk
from fleetbeat_worker.store.batches import read_outages
from fleetbeat_worker.tables import Liveness, Maintenance

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from datetime import datetime
    from uuid import UUID

    from sqlalchemy import Connection, Table

    from fleetbeat_worker.store.verdicts import Due

_LIVENESS: Table = Liveness.__table__  # type: ignore[assignment] # a mapped class has a Table
_PROMISED = ("interval_seconds", "schedule", "time_zone", "grace_seconds", "missed_limit")
_COLUMNS = [_LIVENESS.c[name] for name in ("session_id", "registered_at", "last_seen_at", "resumed_at", *_PROMISED)]
_KEYS_AT_ONCE = 10_000  # SQLite takes 32,766 parameters at most

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


def promises(connection: Connection) -> dict[Promise, int]:
    """Return what live agents promise, each with how many do."""
    columns = [_LIVENESS.c[name] for name in _PROMISED]
    query = select(*columns, func.count()).where(_LIVENESS.c.state != State.ENDED.value).group_by(*columns)
    return {Promise(*promised): number for *promised, number in connection.execute(query)}


def spare(
    connection: Connection, due: Sequence[Due], cleared_at: datetime, watermark: datetime, missed_limit: int
) -> list[Due]:
    """Of agents that are due (and locked), return those that are due still if their clock started anew at `cleared_at`.

    The deadlines of all whose last sign is older move, so that at the end of maintenance only the silent are written.
    """
    doubtful = [agent.session_id for agent in due if agent.last_seen_at is None or agent.last_seen_at < cleared_at]
    if not doubtful:
        return list(due)
    outages = read_outages(connection, cleared_at)
    moved = dict(_anew(connection, doubtful, to_milliseconds(cleared_at), missed_limit, outages))
    bulk.update(connection, _LIVENESS, ("session_id", "deadline_at"), list(moved.items()))
    anew = (
        replace(agent, deadline_at=from_milliseconds(moved[agent.session_id])) if agent.session_id in moved else agent
        for agent in due
    )
    return [agent for agent in anew if agent.deadline_at < watermark]


def _anew(
    connection: Connection,
    sessions: Sequence[UUID],
    cleared_at: int,
    missed_limit: int,
    outages: Sequence[tuple[int, int]],
) -> Iterator[tuple[UUID, int]]:
    """Yield the sessions whose silence began before `cleared_at`, each with its deadline from then."""
    for start in range(0, len(sessions), _KEYS_AT_ONCE):
        rows = bulk.select(connection, _COLUMNS, sessions[start : start + _KEYS_AT_ONCE])
        for session_id, (registered_at, last_seen_at, resumed_at, *promised) in rows:
            if silent_since(registered_at, last_seen_at, resumed_at) < cleared_at:
                yield session_id, deadline_of(Promise(*promised), cleared_at, missed_limit, outages)
