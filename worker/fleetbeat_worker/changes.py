"""All that a sweep changes, in one transaction with the notices that tell of it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from fleetbeat_shared.text import clean
from fleetbeat_worker.column_types import to_milliseconds
from fleetbeat_worker.flapping import find_calm
from fleetbeat_worker.incidents import end_incident
from fleetbeat_worker.maintenance import note_maintenance, read_unwatched
from fleetbeat_worker.notices import Who, agent_notice, fleet_notice
from fleetbeat_worker.reminders import find_reminders
from fleetbeat_worker.silences import flag_silent, judge_due
from fleetbeat_worker.store import changes as store
from fleetbeat_worker.store.maintenance import spare
from fleetbeat_worker.store.notifications import put
from fleetbeat_worker.store.pauses import resume_due
from fleetbeat_worker.store.verdicts import record_outage
from fleetbeat_worker.stuck import find_stuck
from fleetbeat_worker.tables import EventType, NoticeKind

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime
    from uuid import UUID

    from sqlalchemy import Connection

    from fleetbeat_shared.settings import Settings
    from fleetbeat_worker.inbox import Horizon
    from fleetbeat_worker.store.notifications import Notice
    from fleetbeat_worker.store.pipeline import StoredPipeline

WHY_CHARACTERS = 500
"""How much of the reason is kept for which an agent can't be judged."""


@dataclass(frozen=True, slots=True)
class Changes:
    """What a sweep changed."""

    degraded: list[str] = field(default_factory=list)
    """Names of the agents that were flagged."""
    told: list[Notice] = field(default_factory=list)
    resumed: list[str] = field(default_factory=list)
    """Names of the agents whose pause was over."""
    maintenance_since: datetime | None = None
    """Since when there is maintenance, in which nobody is flagged."""

    def named(self, kind: NoticeKind) -> list[str]:
        """Return the agents that are told of with notices of a kind."""
        return [notice.agent_name or "" for notice in self.told if notice.kind is kind]


def make_changes(
    connection: Connection,
    last: StoredPipeline,
    outage: tuple[datetime, datetime] | None,
    horizon: Horizon,
    settings: Settings,
) -> tuple[Changes, StoredPipeline]:
    """Move deadlines over an outage, flag who is silent, find what else changed, and lay down what is told of it.

    `last` is what the last sweep knew of the pipeline, `horizon` how far this one knows. Return also what is known now.
    """
    watermark, now = horizon.watermark, horizon.now
    notices = []
    degraded = []
    if outage is not None:
        notices.append(fleet_notice(NoticeKind.OUTAGE, now, record_outage(connection, *outage)))
    else:  # after an outage most agents are locked: an incident may end a sweep later
        notices += end_incident(connection, now)
    resumed = [agent.agent_name for agent in resume_due(connection, now, settings.missed_intervals)]
    maintenance, known = note_maintenance(connection, last, now)
    if watermark is not None and maintenance.running is None:
        judged = judge_due(connection, watermark)
        cleared_at = maintenance.cleared_at
        if cleared_at is not None and any(agent.since < cleared_at for agent in judged.due):
            unwatched = read_unwatched(connection, maintenance, now)
            judged.due = spare(connection, judged.due, unwatched, watermark, settings.missed_intervals)
        degraded = [agent.agent_name for agent in judged.due]
        notices += flag_silent(connection, judged.due, watermark, now, horizon.backlog, settings)
        notices += find_reminders(connection, last.watermark, watermark, settings)
        calm, unjudged = find_calm(connection, now, settings, {agent.session_id for agent in judged.due})
        notices += calm
        notices += find_stuck(connection, watermark, now, maintenance, settings)
        notices += _set_aside(connection, judged.unjudged | unjudged, now)
    put(connection, notices, to_milliseconds(now))
    since = maintenance.running.starts_at if maintenance.running else None
    unjudged_agents = store.count_unjudged(connection)
    return Changes(degraded, notices, resumed, since), replace(known, unjudged=unjudged_agents)


def _set_aside(connection: Connection, unjudged: Mapping[UUID, str], now: datetime) -> list[Notice]:
    """Leave agents out of later sweeps, until a registration or a heartbeat can be judged."""
    found, notices = [], []
    for session_id, fault in unjudged.items():
        name, project = store.name_of(connection, session_id)
        detail = {"why": clean(fault)[:WHY_CHARACTERS]}
        found.append((session_id, name, detail))
        notices.append(agent_notice(NoticeKind.UNJUDGED, Who(session_id, name, project), now, detail))
    store.mark(connection, "unjudged_at", unjudged, now)
    store.record_all(connection, EventType.UNJUDGED, now, found)
    return notices
