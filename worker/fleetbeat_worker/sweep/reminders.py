"""Reminding people of agents that stay degraded."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import Connection

from fleetbeat_shared.settings import Settings
from fleetbeat_worker.notifications.notice import Who, agent_notice, promise_facts
from fleetbeat_worker.notifications.outbox import Notice
from fleetbeat_worker.notifications.signs import silence_facts
from fleetbeat_worker.rules.enums import NoticeKind
from fleetbeat_worker.rules.liveness import Promise
from fleetbeat_worker.store.pipeline import StoredPipeline
from fleetbeat_worker.sweep.change_rows import find_degraded


def find_reminders(
    connection: Connection, last: StoredPipeline, watermark: datetime, settings: Settings
) -> list[Notice]:
    """Return the reminders that came due between the last sweep's watermark and this one's.

    So they begin with what comes due after they are switched on, and one that was pruned isn't sent again. Only the
    first sweep after maintenance, in which nobody is reminded while watermarks move on, looks at all that came due: the
    last reminder of each agent is returned once more, and its key tells whether it was laid down before.
    """
    if settings.notify_reminder_hours is None or last.watermark is None:
        return []
    every = timedelta(hours=settings.notify_reminder_hours)
    notices = []
    for row in find_degraded(connection, watermark - every):
        number = (watermark - row.state_changed_at) // every
        told = last.maintenance_since is None and row.state_changed_at + number * every <= last.watermark
        if told:
            continue
        promise = Promise(row.interval_seconds, row.schedule, row.time_zone, row.grace_seconds, row.missed_limit)
        facts = {
            **silence_facts(row.registered_at, row.last_seen_at, row.resumed_at),
            "degraded_at": row.state_changed_at.isoformat(),
            "deadline_at": row.deadline_at.isoformat(),
            "watermark": watermark.isoformat(),
            "number": number,
            **promise_facts(promise, settings.missed_intervals),
            **{name: getattr(row, name) for name in ("current_work", "progress", "summary", "error")},
        }
        who = Who(row.session_id, row.agent_name, row.project)
        notices.append(agent_notice(NoticeKind.REMINDER, who, row.state_changed_at, facts, number=number))
    return notices
