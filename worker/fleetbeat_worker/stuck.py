"""Who beats and says the same again and again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fleetbeat_shared.liveness import Promise
from fleetbeat_shared.stuck import stuck_deadline, stuck_limit
from fleetbeat_worker.doing import DOING
from fleetbeat_worker.notices import Who, agent_notice, promise_facts
from fleetbeat_worker.store import changes as store
from fleetbeat_worker.tables import EventType, NoticeKind

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sqlalchemy import Connection, Row

    from fleetbeat_shared.settings import Settings
    from fleetbeat_worker.store.notifications import Notice


def find_stuck(
    connection: Connection, watermark: datetime, now: datetime, cleared_at: datetime | None, settings: Settings
) -> list[Notice]:
    """Mark the agents that are stuck as of the watermark, and return what is told of them.

    `cleared_at` is when the last maintenance ended: nobody had to change anything in it.
    """
    candidates = store.find_stuck_candidates(connection, watermark, settings.stuck_after)
    if not candidates:
        return []
    outages = store.outages_since(connection, min(row.changed_at for row in candidates))
    found, notices = [], []
    for row in candidates:
        limit = stuck_limit(row.stuck_after, settings.stuck_after)
        if limit is None or not _is_stuck(row, watermark, limit, cleared_at, outages):
            continue
        detail = {"changed_at": row.changed_at.isoformat(), **{name: getattr(row, name) for name in DOING}}
        found.append((row.session_id, row.agent_name, detail))
        facts = {
            **detail,
            "current_work": row.current_work,
            "summary": row.summary,
            "watermark": watermark.isoformat(),
            "stuck_after": limit,
            **promise_facts(_promise(row), row.missed_limit or settings.missed_intervals),
        }
        who = Who(row.session_id, row.agent_name, row.project)
        notices.append(agent_notice(NoticeKind.STUCK, who, now, facts))
    store.mark(connection, "stuck_at", [session_id for session_id, *_ in found], now)
    store.record_all(connection, EventType.STUCK, now, found)
    return notices


def _is_stuck(
    row: Row[Any],
    watermark: datetime,
    limit: int,
    cleared_at: datetime | None,
    outages: Sequence[tuple[datetime, datetime]],
) -> bool:
    moments = (row.changed_at, row.state_changed_at, row.resumed_at, cleared_at)
    since = max(moment for moment in moments if moment is not None)
    deadline = stuck_deadline(_promise(row), since, limit, outages)
    return deadline is not None and deadline < watermark


def _promise(row: Row[Any]) -> Promise:
    return Promise(row.interval_seconds, row.schedule, row.time_zone, row.grace_seconds)
