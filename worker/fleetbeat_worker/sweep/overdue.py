"""Overdue agents: finds those whose deadline has passed, flags them, and reminds of those that stay degraded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import Connection, Table
from sqlalchemy.exc import DataError

from fleetbeat_shared.schedules import slots_after
from fleetbeat_shared.settings import Settings
from fleetbeat_worker.database import bulk
from fleetbeat_worker.database.tables import Liveness
from fleetbeat_worker.downtime.maintenance import MaintenanceState, read_unwatched
from fleetbeat_worker.downtime.outages import read_outages
from fleetbeat_worker.notifications.notice import Notice, agent_notice
from fleetbeat_worker.rules.deadlines import DeadlineRule
from fleetbeat_worker.rules.enums import NoticeKind
from fleetbeat_worker.rules.liveness import UNJUDGEABLE, Promise
from fleetbeat_worker.rules.spans import from_milliseconds, to_milliseconds
from fleetbeat_worker.store.pipeline import PipelineState
from fleetbeat_worker.sweep.anomalies import mark_flapping
from fleetbeat_worker.sweep.incidents import find_incident
from fleetbeat_worker.sweep.queries import SweptAgent, find_degraded, find_overdue, find_overdue_ids, flag

_LIVENESS: Table = Liveness.__table__  # type: ignore[assignment] # a mapped class has a Table
_UNREADABLE = (*UNJUDGEABLE, DataError)


@dataclass(slots=True)
class Overdue:
    """The agents whose deadline has passed."""

    agents: list[SweptAgent] = field(default_factory=list)
    unjudged: dict[UUID, str] = field(default_factory=dict)
    """Those that can't be judged, and why."""


def judge_overdue(connection: Connection, watermark: datetime) -> Overdue:
    """Lock and judge the agents whose deadline is before the watermark. An agent that can't be judged stops no other.

    A schedule is evaluated although the deadline is stored: if it can't be, heartbeats move no deadline, and the agent
    would seem silent.
    """
    overdue = Overdue()
    try:
        found = find_overdue(connection, watermark)
    except _UNREADABLE:
        found = _read_one_by_one(connection, watermark, overdue)
    faults: dict[tuple[str | None, str | None], str | None] = {}  # many agents have the same schedule
    for agent in found:
        key = (agent.promise.schedule, agent.promise.time_zone)
        if key not in faults:
            faults[key] = _schedule_fault(agent.promise, watermark)
        fault = faults[key]
        if fault is None:
            overdue.agents.append(agent)
        else:
            overdue.unjudged[agent.session_id] = fault
    return overdue


def _read_one_by_one(connection: Connection, watermark: datetime, overdue: Overdue) -> list[SweptAgent]:
    found = []
    for session_id in find_overdue_ids(connection, watermark):
        try:
            found += find_overdue(connection, watermark, session_id)
        except _UNREADABLE as error:
            overdue.unjudged[session_id] = f"its row can't be read: {error}"
    return found


def _schedule_fault(promise: Promise, now: datetime) -> str | None:
    if promise.interval_seconds is not None:
        return None
    try:
        next(slots_after(promise.schedule or "", promise.time_zone or "UTC", now))
    except UNJUDGEABLE as error:
        return str(error)
    return None


def exclude_downtime(  # noqa: PLR0913, PLR0917 - as of when, and what is excluded
    connection: Connection,
    overdue: list[SweptAgent],
    maintenance: MaintenanceState,
    watermark: datetime,
    now: datetime,
    missed_limit: int,
) -> list[SweptAgent]:
    """Keep those overdue agents (locked) that are overdue also without outages and maintenance.

    Deadlines are moved here, and not at the end of an outage of a few seconds or of a window: so only the rows of
    silent agents are written.
    """
    if not overdue:
        return []
    oldest, cleared_at = min(agent.since for agent in overdue), maintenance.cleared_at
    if (cleared_at is None or oldest >= cleared_at) and not read_outages(connection, oldest):
        return overdue
    unwatched = read_unwatched(connection, maintenance, now)
    rules: dict[Promise, DeadlineRule] = {}  # most agents of a fleet promise the same
    left, moved = [], []
    for agent in overdue:
        since, stored = to_milliseconds(agent.since), to_milliseconds(agent.deadline_at)
        if agent.promise not in rules:
            rules[agent.promise] = DeadlineRule(agent.promise, missed_limit, unwatched)
        start, due = rules[agent.promise].clock(since) if unwatched.is_after(since) else (since, stored)
        deadline = max(stored, due)
        if deadline != stored:
            moved.append((agent.session_id, deadline))
        deadline_at = from_milliseconds(deadline)
        if deadline_at < watermark:
            cleared_at = from_milliseconds(start) if start != since else None
            left.append(replace(agent, deadline_at=deadline_at, cleared_at=cleared_at))
    bulk.update(connection, _LIVENESS, ("session_id", "deadline_at"), moved)
    return left


def flag_overdue(  # noqa: PLR0913, PLR0917 - what the events and notices contain
    connection: Connection,
    overdue: Sequence[SweptAgent],
    watermark: datetime,
    now: datetime,
    backlog: int,
    settings: Settings,
) -> list[Notice]:
    """Flag overdue agents as degraded, and return the notices: one for an incident, or one for each agent.

    A flapping agent has none. `backlog` is how many messages waited in the inbox.
    """
    incident_id, notices = find_incident(connection, overdue, now)
    flag(connection, overdue, watermark, now, backlog=backlog, incident_id=incident_id)
    if incident_id is not None:
        return notices
    steady = [agent for agent in overdue if agent.flapping_at is None]
    notices, flapping = mark_flapping(connection, steady, now, settings)
    for agent in steady:
        if agent.session_id not in flapping:
            facts = agent.notice_facts(settings.missed_intervals)
            facts |= {"deadline_at": agent.deadline_at.isoformat(), "watermark": watermark.isoformat()}
            notices.append(agent_notice(NoticeKind.DEGRADED, agent, now, facts))
    return notices


def find_reminders(
    connection: Connection, last: PipelineState, watermark: datetime, settings: Settings
) -> list[Notice]:
    """Return the reminders that became due between the last sweep's watermark and this one's.

    So reminders start when they are switched on, and one that was pruned isn't sent again. During maintenance no
    reminders are sent while the watermark advances. So the first sweep after it returns the last reminder of each
    agent, even if that was written before: the outbox ignores a key that it has.
    """
    if settings.notify_reminder_hours is None or last.watermark is None:
        return []
    every = timedelta(hours=settings.notify_reminder_hours)
    notices = []
    for agent in find_degraded(connection, watermark - every):
        number = (watermark - agent.state_changed_at) // every
        if last.maintenance_since is None and agent.state_changed_at + number * every <= last.watermark:
            continue
        facts = agent.notice_facts(settings.missed_intervals) | {
            "degraded_at": agent.state_changed_at.isoformat(),
            "deadline_at": agent.deadline_at.isoformat(),
            "watermark": watermark.isoformat(),
            "number": number,
        }
        notices.append(agent_notice(NoticeKind.REMINDER, agent, agent.state_changed_at, facts, number=number))
    return notices
