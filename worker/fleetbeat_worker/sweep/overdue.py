"""Whom a sweep flags, and how that is told: one by one, as one incident, or not at all while an agent flaps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import Connection
from sqlalchemy.exc import DataError

from fleetbeat_shared.schedules import slots_after
from fleetbeat_shared.settings import Settings
from fleetbeat_worker.database import bulk
from fleetbeat_worker.downtime.maintenance import _LIVENESS
from fleetbeat_worker.notifications.notice import Notice, Who, agent_notice, promise_facts, silence_facts
from fleetbeat_worker.rules.deadlines import DeadlineRule, Unwatched
from fleetbeat_worker.rules.enums import NoticeKind
from fleetbeat_worker.rules.liveness import UNJUDGEABLE, Promise, promise_of
from fleetbeat_worker.rules.spans import from_milliseconds, to_milliseconds
from fleetbeat_worker.store.pipeline import StoredPipeline
from fleetbeat_worker.store.sessions import work_of
from fleetbeat_worker.sweep.anomalies import mark_flapping
from fleetbeat_worker.sweep.incidents import find_incident
from fleetbeat_worker.sweep.queries import Due, find_degraded, find_due, find_due_ids, flag

_UNREADABLE = (*UNJUDGEABLE, DataError)


@dataclass(slots=True)
class Judged:
    """The agents whose deadline has passed."""

    due: list[Due] = field(default_factory=list)
    unjudged: dict[UUID, str] = field(default_factory=dict)
    """Those that can't be judged, and why."""


def judge_due(connection: Connection, watermark: datetime) -> Judged:
    """Lock and judge the agents whose deadline lies before the watermark: one whose row is bad stops no other.

    A schedule is tried, though its deadline is in the row: heartbeats of one that can't be worked out move no deadline,
    so that the agent may look silent and isn't.
    """
    judged = Judged()
    try:
        found = find_due(connection, watermark)
    except _UNREADABLE:
        found = _read_one_by_one(connection, watermark, judged)
    faults: dict[tuple[str | None, str | None], str | None] = {}  # many agents have the same schedule
    for agent in found:
        key = (agent.promise.schedule, agent.promise.time_zone)
        if key not in faults:
            faults[key] = _fault(agent.promise, watermark)
        fault = faults[key]
        if fault is None:
            judged.due.append(agent)
        else:
            judged.unjudged[agent.session_id] = fault
    return judged


def _read_one_by_one(connection: Connection, watermark: datetime, judged: Judged) -> list[Due]:
    found = []
    for session_id in find_due_ids(connection, watermark):
        try:
            found += find_due(connection, watermark, session_id)
        except _UNREADABLE as error:
            judged.unjudged[session_id] = f"its row can't be read: {error}"
    return found


def _fault(promise: Promise, now: datetime) -> str | None:
    if promise.interval_seconds is not None:
        return None
    try:
        next(slots_after(promise.schedule or "", promise.time_zone or "UTC", now))
    except UNJUDGEABLE as error:
        return str(error)
    return None


def flag_silent(  # noqa: PLR0913, PLR0917 - what the flags tell
    connection: Connection, due: Sequence[Due], watermark: datetime, now: datetime, backlog: int, settings: Settings
) -> list[Notice]:
    """Flag agents, and return what is told of it; `backlog` is how many messages waited in the inbox."""
    incident_id, notices = find_incident(connection, due, now)
    flag(connection, due, watermark, now, backlog=backlog, incident_id=incident_id)
    if incident_id is not None:
        return notices
    steady = [agent for agent in due if agent.flapping_at is None]
    notices, flapping = mark_flapping(connection, steady, now, settings)
    alone = [agent for agent in steady if agent.session_id not in flapping]
    work = work_of(connection, [agent.session_id for agent in alone])
    for agent in alone:
        facts = {
            **silence_facts(agent.registered_at, agent.last_seen_at, agent.resumed_at, agent.cleared_at),
            "deadline_at": agent.deadline_at.isoformat(),
            "watermark": watermark.isoformat(),
            **promise_facts(agent.promise, settings.missed_intervals),
            **work.get(agent.session_id, {}),
        }
        who = Who(agent.session_id, agent.agent_name, agent.project)
        notices.append(agent_notice(NoticeKind.DEGRADED, who, now, facts))
    return notices


def spare(
    connection: Connection, due: Sequence[Due], unwatched: Unwatched, watermark: datetime, missed_limit: int
) -> list[Due]:
    """Of agents that are due (and locked), return those that are due still when all is counted that isn't watched.

    The deadlines of the others move, so that at the end of a window, or of a gap, only the silent are written.
    """
    rules: dict[Promise, DeadlineRule] = {}  # most agents of a fleet promise the same
    left, moved = [], []
    for agent in due:
        since, stored = to_milliseconds(agent.since), to_milliseconds(agent.deadline_at)
        if agent.promise not in rules:
            rules[agent.promise] = DeadlineRule(agent.promise, missed_limit, unwatched)
        start, due_at = rules[agent.promise].clock(since) if unwatched.is_after(since) else (since, stored)
        deadline = max(stored, due_at)
        if deadline != stored:
            moved.append((agent.session_id, deadline))
        deadline_at = from_milliseconds(deadline)
        if deadline_at < watermark:
            cleared_at = from_milliseconds(start) if start != since else None
            left.append(replace(agent, deadline_at=deadline_at, cleared_at=cleared_at))
    bulk.update(connection, _LIVENESS, ("session_id", "deadline_at"), moved)
    return left


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
        promise = promise_of(row)
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
