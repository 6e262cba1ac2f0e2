"""Who changes state too often to be told of each time, and who is calm again."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row

from fleetbeat_shared.settings import Settings
from fleetbeat_worker.downtime.maintenance import MaintenanceState, read_unwatched
from fleetbeat_worker.notifications.notice import Notice, Who, agent_notice, promise_facts, silence_facts
from fleetbeat_worker.rules.anomalies import DOING, is_flapping, stuck_limit
from fleetbeat_worker.rules.deadlines import DeadlineRule, Unwatched
from fleetbeat_worker.rules.enums import EventType, NoticeKind
from fleetbeat_worker.rules.liveness import UNJUDGEABLE, promise_of, silent_since
from fleetbeat_worker.rules.spans import to_milliseconds
from fleetbeat_worker.store.events import change_times, earliest_window, flapping_among, record_all
from fleetbeat_worker.store.sessions import mark, work_of
from fleetbeat_worker.sweep import queries
from fleetbeat_worker.sweep.queries import Due


def mark_flapping(
    connection: Connection, flagged: Sequence[Due], now: datetime, settings: Settings
) -> tuple[list[Notice], set[UUID]]:
    """Mark those of some agents that begin to flap, as they were just flagged; return what is told of them."""
    ids = flapping_among(connection, flagged, now, settings.flapping_changes)
    found = [agent for agent in flagged if agent.session_id in ids]
    detail = {"state": "degraded", "more_changes_than": settings.flapping_changes}
    mark(connection, "flapping_at", ids, now)
    record_all(connection, EventType.FLAPPING, now, [(agent.session_id, agent.agent_name, detail) for agent in found])
    notices = []
    work = work_of(connection, ids)
    for agent in found:
        promised = promise_facts(agent.promise, settings.missed_intervals)
        who = Who(agent.session_id, agent.agent_name, agent.project)
        silence = silence_facts(agent.registered_at, agent.last_seen_at, agent.resumed_at, agent.cleared_at)
        facts = {**detail, **silence, **promised, **work.get(agent.session_id, {})}
        notices.append(agent_notice(NoticeKind.FLAPPING, who, now, facts))
    return notices, ids


def find_calm(
    connection: Connection, now: datetime, settings: Settings, changed: Collection[UUID]
) -> tuple[list[Notice], dict[UUID, str]]:
    """Mark flapping agents as calm that have kept their state; return what is told of them, and who can't be judged.

    `changed` are those that were flagged just now.
    """
    rows = [row for row in queries.find_flapping(connection) if row.session_id not in changed]
    promises = [promise_of(row) for row in rows]
    earliest = earliest_window(promises, now)
    times = change_times(connection, [row.session_id for row in rows], earliest, settings.flapping_changes)
    calm, told, unjudged = [], [], {}
    for row, promise in zip(rows, promises, strict=True):
        try:
            if is_flapping(times.get(row.session_id, ()), promise, now, settings.flapping_changes):
                continue
        except UNJUDGEABLE as error:
            unjudged[row.session_id] = str(error)
            continue
        detail = {"state": row.state, "stuck": row.stuck_at is not None}
        calm.append((row.session_id, row.agent_name, detail))
        silence = silence_facts(row.registered_at, row.last_seen_at, row.resumed_at)
        facts = {**detail, **silence, **promise_facts(promise, settings.missed_intervals)}
        told.append((Who(row.session_id, row.agent_name, row.project), facts))
    mark(connection, "flapping_at", [session_id for session_id, *_ in calm], None)
    record_all(connection, EventType.CALM, now, calm)
    work = work_of(connection, [who.session_id for who, _ in told])
    notices = [agent_notice(NoticeKind.CALM, who, now, facts | work.get(who.session_id, {})) for who, facts in told]
    return notices, unjudged


def find_stuck(
    connection: Connection, watermark: datetime, now: datetime, maintenance: MaintenanceState, settings: Settings
) -> list[Notice]:
    """Mark the agents that are stuck as of the watermark, and return what is told of them.

    What counts for no silence counts for this neither: nobody had to change anything in maintenance. An agent that is
    late isn't stuck, even if it may be silent for longer than it may do the same: stuck is who beats.
    """
    candidates = queries.find_stuck_candidates(connection, watermark, settings.stuck_after)
    if not candidates:
        return []
    unwatched = read_unwatched(connection, maintenance, now)
    found, notices = [], []
    for row in candidates:
        limit = stuck_limit(row.stuck_after, settings.stuck_after)
        if limit is None or not is_stuck(row, watermark, limit, unwatched):
            continue
        detail = {"changed_at": row.changed_at.isoformat(), **{name: getattr(row, name) for name in DOING}}
        found.append((row.session_id, row.agent_name, detail))
        facts = {
            **detail,
            "current_work": row.current_work,
            "summary": row.summary,
            "watermark": watermark.isoformat(),
            "stuck_after": limit,
            **promise_facts(promise_of(row), settings.missed_intervals),
        }
        who = Who(row.session_id, row.agent_name, row.project)
        notices.append(agent_notice(NoticeKind.STUCK, who, now, facts))
    mark(connection, "stuck_at", [session_id for session_id, *_ in found], now)
    record_all(connection, EventType.STUCK, now, found)
    return notices


def is_stuck(row: Row[Any], watermark: datetime, limit: int, unwatched: Unwatched) -> bool:
    """Return whether an agent that is ok said nothing new for longer than so many intervals and the grace."""
    moments = (row.changed_at, row.state_changed_at, row.resumed_at)
    unchanged_since = max(to_milliseconds(moment) for moment in moments if moment is not None)
    if not _has_passed(row, unchanged_since, watermark, limit, unwatched):
        return False
    # Who beats no more isn't stuck: an agent that is late is left to its silence.
    silent = to_milliseconds(silent_since(row.registered_at, row.last_seen_at, row.resumed_at))
    return not _has_passed(row, silent, watermark, 1, unwatched)


def _has_passed(row: Row[Any], since: int, watermark: datetime, limit: int, unwatched: Unwatched) -> bool:
    """Return whether so many intervals and the grace lie between a moment and the watermark."""
    rule = DeadlineRule(replace(promise_of(row), missed_limit=limit), limit, unwatched)
    return rule(since) < to_milliseconds(watermark)
