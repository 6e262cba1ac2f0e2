"""Whom a sweep flags, and how that is told: one by one, as one incident, or not at all while an agent flaps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection
from sqlalchemy.exc import DataError

from fleetbeat_shared.schedules import slots_after
from fleetbeat_shared.settings import Settings
from fleetbeat_worker.notifications.notice import Who, agent_notice, promise_facts
from fleetbeat_worker.notifications.outbox import Notice
from fleetbeat_worker.notifications.signs import silence_facts
from fleetbeat_worker.rules.enums import NoticeKind
from fleetbeat_worker.rules.liveness import UNJUDGEABLE, Promise
from fleetbeat_worker.sweep.anomalies import mark_flapping
from fleetbeat_worker.sweep.change_rows import work_of
from fleetbeat_worker.sweep.incidents import find_incident
from fleetbeat_worker.sweep.queries import Due, find_due, find_due_ids, flag

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
