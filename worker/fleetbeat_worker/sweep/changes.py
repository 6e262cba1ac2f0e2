"""All that a sweep changes, in one transaction with the notices that tell of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection

from fleetbeat_shared.sanitize import clean
from fleetbeat_shared.settings import Settings
from fleetbeat_worker.broker.inbox import Horizon
from fleetbeat_worker.downtime.maintenance import MaintenanceState, note_maintenance, read_unwatched
from fleetbeat_worker.downtime.maintenance_rows import spare
from fleetbeat_worker.downtime.outages import read_outages, record_gaps, record_outage
from fleetbeat_worker.downtime.pauses import resume_due
from fleetbeat_worker.notifications.notice import NAMED, Who, agent_notice, fleet_notice
from fleetbeat_worker.notifications.outbox import Notice, put
from fleetbeat_worker.rules.enums import EventType, NoticeKind
from fleetbeat_worker.rules.spans import Span, to_milliseconds
from fleetbeat_worker.store.pipeline import StoredPipeline
from fleetbeat_worker.sweep import change_rows as store
from fleetbeat_worker.sweep.anomalies import find_calm
from fleetbeat_worker.sweep.incidents import end_incident
from fleetbeat_worker.sweep.overdue import flag_silent, judge_due
from fleetbeat_worker.sweep.queries import Due
from fleetbeat_worker.sweep.reminders import find_reminders
from fleetbeat_worker.sweep.stuck import find_stuck

WHY_CHARACTERS = 500
"""How much of the reason is kept for which an agent can't be judged."""


@dataclass(frozen=True, slots=True)
class Changes:
    """What a sweep changed."""

    degraded: list[str] = field(default_factory=list)
    """Names of the agents that were flagged."""
    told: list[Notice] = field(default_factory=list)
    unjudged: list[str] = field(default_factory=list)
    """Names of the agents that were set aside."""
    resumed: list[str] = field(default_factory=list)
    """Names of the agents whose pause was over."""
    maintenance_since: datetime | None = None
    """Since when there is maintenance, in which nobody is flagged."""

    def named(self, kind: NoticeKind) -> list[str]:
        """Return the agents that are told of by themselves with notices of a kind."""
        return [notice.agent_name or "" for notice in self.told if notice.kind is kind]


def make_changes(  # noqa: PLR0913, PLR0917 - all that a sweep goes by
    connection: Connection,
    last: StoredPipeline,
    outage: tuple[datetime, datetime] | None,
    gaps: Sequence[Span],
    horizon: Horizon,
    settings: Settings,
) -> tuple[Changes, StoredPipeline]:
    """Move deadlines over an outage, flag who is silent, find what else changed, and lay down what is told of it.

    `last` is what the last sweep knew of the pipeline, `horizon` how far this one knows; in `gaps`, shorter than an
    outage, nobody could be heard. Return also what is known now.
    """
    watermark, now = horizon.watermark, horizon.now
    notices = []
    degraded: list[str] = []
    set_aside: list[str] = []
    if outage is not None:
        notices.append(fleet_notice(NoticeKind.OUTAGE, now, record_outage(connection, *outage)))
    else:  # after an outage most agents are locked: an incident may end a sweep later
        notices += end_incident(connection, now)
        record_gaps(connection, gaps)
    resumed = [agent.agent_name for agent in resume_due(connection, now, settings.missed_intervals)]
    maintenance, known = note_maintenance(connection, last, now)
    if watermark is not None and maintenance.running is None:
        judged = judge_due(connection, watermark)
        if judged.due:
            judged.due = _spare(connection, judged.due, maintenance, horizon, settings)
        degraded = [agent.agent_name for agent in judged.due]
        notices += flag_silent(connection, judged.due, watermark, now, horizon.backlog, settings)
        notices += find_reminders(connection, last, watermark, settings)
        calm, unjudged = find_calm(connection, now, settings, {agent.session_id for agent in judged.due})
        notices += calm
        notices += find_stuck(connection, watermark, now, maintenance, settings)
        set_aside, told = _set_aside(connection, judged.unjudged | unjudged, now)
        notices += told
    put(connection, notices, to_milliseconds(now))
    since = maintenance.running.starts_at if maintenance.running else None
    unjudged_agents = store.count_unjudged(connection)
    return Changes(degraded, notices, set_aside, resumed, since), replace(known, unjudged=unjudged_agents)


def _spare(
    connection: Connection, due: list[Due], maintenance: MaintenanceState, horizon: Horizon, settings: Settings
) -> list[Due]:
    """Return who is due still when all is counted that nobody wrote to its deadline yet."""
    oldest, cleared_at = min(agent.since for agent in due), maintenance.cleared_at
    nothing_since = cleared_at is None or oldest >= cleared_at
    if horizon.watermark is None or (nothing_since and not read_outages(connection, oldest)):
        return due
    unwatched = read_unwatched(connection, maintenance, horizon.now)
    return spare(connection, due, unwatched, horizon.watermark, settings.missed_intervals)


def _set_aside(connection: Connection, unjudged: Mapping[UUID, str], now: datetime) -> tuple[list[str], list[Notice]]:
    """Leave agents out of later sweeps, until a registration or a heartbeat can be judged.

    Return their names, and what is told of it. Those for which the reason is the same are told of as one: a machine
    without time zones has many.
    """
    by_reason: dict[str, list[Who]] = defaultdict(list)
    for row in store.names_of(connection, unjudged):
        who = Who(row.session_id, row.agent_name, row.project)
        by_reason[clean(unjudged[who.session_id])[:WHY_CHARACTERS]].append(who)
    store.mark(connection, "unjudged_at", unjudged, now)
    found = [(who.session_id, who.agent_name, {"why": why}) for why, those in by_reason.items() for who in those]
    store.record_all(connection, EventType.UNJUDGED, now, found)
    notices = []
    for number, (why, those) in enumerate(by_reason.items()):
        if len(those) == 1:
            notices.append(agent_notice(NoticeKind.UNJUDGED, those[0], now, {"why": why}))
        else:
            names = sorted(who.agent_name for who in those)
            detail = {"why": why, "agents": len(those), "names": names[:NAMED]}
            notices.append(fleet_notice(NoticeKind.UNJUDGED, now, detail, number=number))
    return [name for _, name, _ in found], notices
