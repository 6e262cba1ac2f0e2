"""Maintenance: its rules in SQL, the windows that they give, and the events of windows that began and ended."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, insert, or_, select, update

from fleetbeat_worker.database.tables import Maintenance
from fleetbeat_worker.downtime.outages import read_outages
from fleetbeat_worker.rules.deadlines import Unwatched
from fleetbeat_worker.rules.enums import EventType
from fleetbeat_worker.rules.maintenance_windows import (
    Window,
    WindowRule,
    find_fault,
    last_end,
    next_start,
    running,
    windows_of,
)
from fleetbeat_worker.rules.spans import merge, to_milliseconds
from fleetbeat_worker.rules.sweep_gaps import last_look
from fleetbeat_worker.rules.timeline import WINDOWS, changes_of, spans_of
from fleetbeat_worker.store import history
from fleetbeat_worker.store.events import record_fleet_event
from fleetbeat_worker.store.pipeline import PipelineState
from fleetbeat_worker.telemetry.log import logger

_RULE = ("starts_at", "ends_at", "schedule", "time_zone", "duration_seconds", "reason", "ended_at", "cut_at")


@dataclass(frozen=True, slots=True)
class MaintenanceState:
    """Maintenance as of a given time."""

    windows: list[Window]
    """The windows since the last sweep, merged: those that ran at it, and those that began after it."""
    running: Window | None
    cleared_at: datetime | None
    """When the last window ended: silence that began before counts from then."""


def read_maintenance(connection: Connection, last: PipelineState, now: datetime) -> MaintenanceState:
    """Read the maintenance since the last sweep, as of `now` (Redis's time)."""
    known = [time for time in (last.maintenance_since, last.last_sweep_at) if time is not None]
    since = min([now, *known])
    found = windows_of(_usable(read_rules(connection, since)), since, now)
    ends = [time for time in (last.cleared_at, last_end(found, now)) if time is not None]
    return MaintenanceState(found, running(found, now), max(ends, default=None))


def read_running_and_next(connection: Connection, now: datetime) -> tuple[Window | None, Window | None]:
    """Read the window that is running at a given time, and the next one, if any."""
    rules = _usable(read_rules(connection, now))
    starts = [start for rule in rules if (start := next_start(rule, now)) is not None]
    found = windows_of(rules, now, min(starts, default=now))
    return running(found, now), next((window for window in found if window.starts_at > now), None)


def _usable(rules: Mapping[int, WindowRule]) -> list[WindowRule]:
    """Select the rules that can be evaluated: one that can't be must not stop all verdicts."""
    usable = []
    for rule_id, rule in rules.items():
        fault = find_fault(rule)
        if fault is None:
            usable.append(rule)
        else:
            logger.error("Maintenance %s is ignored: %s. End it, and start it again.", rule_id, fault)
    return usable


def read_unwatched(connection: Connection, maintenance: MaintenanceState, now: datetime) -> Unwatched:
    """Read the times that are excluded from deadlines: outages, and maintenance windows that are over.

    Windows that ended since the last sweep have no event yet, and are in `maintenance`.
    """
    changes = changes_of(history.read_fleet_changes(connection, WINDOWS))
    over = [(window.starts_at, window.ends_at) for window in maintenance.windows if window.ends_at is not None]
    new = [(to_milliseconds(start), to_milliseconds(end)) for start, end in over if end <= now]
    recorded = spans_of(changes, to_milliseconds(now), *WINDOWS)
    if recorded and changes[-1].kind is EventType.MAINTENANCE:
        recorded.pop()  # it is still running, or it is one of the new ones
    return Unwatched(read_outages(connection), merge([*recorded, *new]))


def record_maintenance(
    connection: Connection, last: PipelineState, now: datetime
) -> tuple[MaintenanceState, PipelineState]:
    """Record the windows that began and ended since the last sweep, each once; return also the new pipeline row.

    The row of `pipeline` is locked, so that no two sweeps record the same. A sweep that was overtaken by another one
    goes by that one's time: what began and ended before is recorded.
    """
    now = last_look(last.last_sweep_at, now)
    found = read_maintenance(connection, last, now)
    since = last.maintenance_since
    for window in found.windows:
        if since is None:
            since = window.starts_at
            _record(connection, EventType.MAINTENANCE, window.starts_at, window)
        if window.ends_at is not None and window.ends_at <= now:
            since = None
            _record(connection, EventType.MAINTENANCE_OVER, window.ends_at, window)
    if since is not None and found.running is None:  # its rule was deleted, or changed to end before it was found
        since, found = None, replace(found, cleared_at=now)
        record_fleet_event(connection, EventType.MAINTENANCE_OVER, now, {})
    return found, replace(last, maintenance_since=since, cleared_at=found.cleared_at)


def _record(connection: Connection, kind: EventType, occurred_at: datetime, window: Window) -> None:
    detail = {
        "starts_at": window.starts_at.isoformat(),
        "ends_at": window.ends_at.isoformat() if window.ends_at else None,
        "reason": window.reason,
    }
    known = {name: value for name, value in detail.items() if value is not None}
    record_fleet_event(connection, kind, occurred_at, known)


def read_rules(connection: Connection, since: datetime | None = None) -> dict[int, WindowRule]:
    """Read the rules by id, in the order of ids; with `since`, without those that ended before it."""
    query = select(Maintenance.id, *(getattr(Maintenance, name) for name in _RULE)).order_by(Maintenance.id)
    if since is not None:
        query = query.where(or_(Maintenance.ended_at.is_(None), Maintenance.ended_at > since))
        single_over = Maintenance.schedule.is_(None) & (Maintenance.ends_at <= since)
        query = query.where(or_(Maintenance.ends_at.is_(None), ~single_over))
    return {rule_id: WindowRule(**dict(zip(_RULE, row, strict=True))) for rule_id, *row in connection.execute(query)}


def add_rule(connection: Connection, rule: WindowRule, now: datetime) -> int:
    """Store a rule, and return its id."""
    values: dict[str, Any] = {name: getattr(rule, name) for name in _RULE}
    statement = insert(Maintenance).values(created_at=now, **values).returning(Maintenance.id)
    return connection.execute(statement).scalar_one()


def end_rules(connection: Connection, ids: Collection[int], now: datetime) -> None:
    """End rules for good."""
    connection.execute(update(Maintenance).where(Maintenance.id.in_(list(ids))).values(ended_at=now))


def end_running_windows(connection: Connection, ids: Collection[int], now: datetime) -> None:
    """End the running windows of recurring rules; later windows are not affected."""
    connection.execute(update(Maintenance).where(Maintenance.id.in_(list(ids))).values(cut_at=now))
