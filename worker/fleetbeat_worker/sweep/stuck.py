"""Who beats and says the same again and again."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row

from fleetbeat_shared.settings import Settings
from fleetbeat_worker.downtime.maintenance import MaintenanceState, read_unwatched
from fleetbeat_worker.ingest.doing import DOING
from fleetbeat_worker.notifications.notice import Who, agent_notice, promise_facts
from fleetbeat_worker.notifications.outbox import Notice
from fleetbeat_worker.rules.deadlines import DeadlineRule, Unwatched
from fleetbeat_worker.rules.enums import EventType, NoticeKind
from fleetbeat_worker.rules.liveness import Promise, silent_since
from fleetbeat_worker.rules.spans import to_milliseconds
from fleetbeat_worker.rules.stuck import stuck_limit
from fleetbeat_worker.sweep import change_rows as store


def find_stuck(
    connection: Connection, watermark: datetime, now: datetime, maintenance: MaintenanceState, settings: Settings
) -> list[Notice]:
    """Mark the agents that are stuck as of the watermark, and return what is told of them.

    What counts for no silence counts for this neither: nobody had to change anything in maintenance. An agent that is
    late isn't stuck, even if it may be silent for longer than it may do the same: stuck is who beats.
    """
    candidates = store.find_stuck_candidates(connection, watermark, settings.stuck_after)
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
            **promise_facts(_promise(row), settings.missed_intervals),
        }
        who = Who(row.session_id, row.agent_name, row.project)
        notices.append(agent_notice(NoticeKind.STUCK, who, now, facts))
    store.mark(connection, "stuck_at", [session_id for session_id, *_ in found], now)
    store.record_all(connection, EventType.STUCK, now, found)
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
    rule = DeadlineRule(replace(_promise(row), missed_limit=limit), limit, unwatched)
    return rule(since) < to_milliseconds(watermark)


def _promise(row: Row[Any]) -> Promise:
    return Promise(row.interval_seconds, row.schedule, row.time_zone, row.grace_seconds, row.missed_limit)
