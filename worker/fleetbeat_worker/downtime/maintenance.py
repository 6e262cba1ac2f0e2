"""What maintenance means for the sweep and for whoever looks: whether it is on, and which windows are over."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Table, insert, or_, select, update

from fleetbeat_worker.database.tables import Liveness, Maintenance
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


@dataclass(frozen=True, slots=True)
class MaintenanceState:
    """Maintenance as of a moment."""

    windows: list[Window]
    """Those that weren't over at the last sweep and began since, merged."""
    running: Window | None
    cleared_at: datetime | None
    """When the last one ended: it concerns those who were silent before."""


def read_maintenance(connection: Connection, last: PipelineState, now: datetime) -> MaintenanceState:
    """Return what holds at `now` (Redis's time), of all that the last sweep didn't know."""
    known = [moment for moment in (last.maintenance_since, last.last_sweep_at) if moment is not None]
    since = min([now, *known])
    found = windows_of(_usable(window_rules(connection, since)), since, now)
    ends = [moment for moment in (last.cleared_at, last_end(found, now)) if moment is not None]
    return MaintenanceState(found, running(found, now), max(ends, default=None))


def read_coming(connection: Connection, now: datetime) -> tuple[Window | None, Window | None]:
    """Return the window that runs at a moment and the one that begins next, as far as somebody asked for them."""
    rules = _usable(window_rules(connection, now))
    starts = [start for rule in rules if (start := next_start(rule, now)) is not None]
    found = windows_of(rules, now, min(starts, default=now))
    return running(found, now), next((window for window in found if window.starts_at > now), None)


def _usable(rules: Mapping[int, WindowRule]) -> list[WindowRule]:
    """Return the rules that can be worked out: one that can't must not keep sweeps from all verdicts."""
    usable = []
    for number, rule in rules.items():
        fault = find_fault(rule)
        if fault is None:
            usable.append(rule)
        else:
            logger.error("Maintenance %s is left out: %s. End it, and start it anew.", number, fault)
    return usable


def read_unwatched(connection: Connection, found: MaintenanceState, now: datetime) -> Unwatched:
    """Return the outages, and the windows that are over: those that events tell, and those that none tells yet."""
    changes = changes_of(history.read_fleet_changes(connection, WINDOWS))
    over = [(window.starts_at, window.ends_at) for window in found.windows if window.ends_at is not None]
    new = [(to_milliseconds(start), to_milliseconds(end)) for start, end in over if end <= now]
    told = spans_of(changes, to_milliseconds(now), *WINDOWS)
    if told and changes[-1].kind is EventType.MAINTENANCE:
        told.pop()  # it runs still, or is among those that no sweep found over yet
    return Unwatched(read_outages(connection), merge([*told, *new]))


def note_maintenance(
    connection: Connection, last: PipelineState, now: datetime
) -> tuple[MaintenanceState, PipelineState]:
    """Tell by events, once each, what began and ended since the last sweep; return what holds, and what is known now.

    The row of `pipeline` is locked, so that no two sweeps tell the same. A sweep that was overtaken by another goes by
    that one's time: what has begun and ended by then was told.
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
    if since is not None and found.running is None:  # its row is gone, or was changed to end before it was found
        since, found = None, replace(found, cleared_at=now)
        record_fleet_event(connection, EventType.MAINTENANCE_OVER, now, {})
    return found, replace(last, maintenance_since=since, cleared_at=found.cleared_at)


def _record(connection: Connection, kind: EventType, occurred_at: datetime, window: Window) -> None:
    detail = {
        "starts_at": window.starts_at.isoformat(),
        "ends_at": window.ends_at.isoformat() if window.ends_at else None,
        "reason": window.reason,
    }
    record_fleet_event(
        connection, kind, occurred_at, {name: value for name, value in detail.items() if value is not None}
    )


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
