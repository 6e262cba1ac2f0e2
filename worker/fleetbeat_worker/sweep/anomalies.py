"""Flapping and stuck agents: those that change their state too often, and those whose reported work doesn't change."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection

from fleetbeat_shared.settings import Settings
from fleetbeat_worker.downtime.maintenance import MaintenanceState, read_unwatched
from fleetbeat_worker.notifications.notice import Notice, agent_notice
from fleetbeat_worker.rules.anomalies import DOING, is_flapping, is_stuck, stuck_limit
from fleetbeat_worker.rules.deadlines import Unwatched
from fleetbeat_worker.rules.enums import EventType, NoticeKind
from fleetbeat_worker.rules.liveness import UNJUDGEABLE
from fleetbeat_worker.rules.spans import to_milliseconds
from fleetbeat_worker.store.events import find_flapping, flapping_window_start, read_change_times, record_agent_events
from fleetbeat_worker.store.sessions import set_time
from fleetbeat_worker.sweep.queries import ReportedAgent, SweptAgent, find_flapping_agents, find_stuck_candidates

_Found = list[tuple[SweptAgent, dict[str, Any]]]
"""Agents of one kind, each with the detail of its event."""


def mark_flapping(
    connection: Connection, flagged: Sequence[SweptAgent], now: datetime, settings: Settings
) -> tuple[list[Notice], set[UUID]]:
    """Mark those agents that start to flap with the flag that they just got; return the notices and the sessions."""
    ids = find_flapping(connection, flagged, now, settings.flapping_changes)
    detail = {"state": "degraded", "more_changes_than": settings.flapping_changes}
    found: _Found = [(agent, detail) for agent in flagged if agent.session_id in ids]
    set_time(connection, "flapping_at", ids, now)
    return _record(connection, EventType.FLAPPING, now, found, settings), ids


def end_flapping(
    connection: Connection, now: datetime, settings: Settings, flagged: Collection[UUID]
) -> tuple[list[Notice], dict[UUID, str]]:
    """Unmark the flapping agents that have become calm; return the notices, and why others can't be judged.

    `flagged`: the sessions that this sweep flagged, which are left out.
    """
    agents = [agent for agent in find_flapping_agents(connection) if agent.session_id not in flagged]
    earliest = flapping_window_start([agent.promise for agent in agents], now)
    times = read_change_times(connection, [agent.session_id for agent in agents], earliest, settings.flapping_changes)
    calm: _Found = []
    unjudged = {}
    for agent in agents:
        try:
            if not is_flapping(times.get(agent.session_id, ()), agent.promise, now, settings.flapping_changes):
                calm.append((agent, {"state": agent.state, "stuck": agent.stuck_at is not None}))
        except UNJUDGEABLE as error:
            unjudged[agent.session_id] = str(error)
    set_time(connection, "flapping_at", [agent.session_id for agent, _ in calm], None)
    return _record(connection, EventType.CALM, now, calm, settings), unjudged


def mark_stuck(
    connection: Connection, watermark: datetime, now: datetime, maintenance: MaintenanceState, settings: Settings
) -> list[Notice]:
    """Mark the agents that are stuck as of the watermark, and return the notices.

    Outages and maintenance are excluded, as they are from silence. An agent that is late isn't stuck, even if its limit
    for missed intervals is the higher one: a stuck agent sends heartbeats.
    """
    candidates = find_stuck_candidates(connection, watermark, settings.stuck_after)
    if not candidates:
        return []
    unwatched = read_unwatched(connection, maintenance, now)
    stuck: _Found = []
    for agent in candidates:
        limit = stuck_limit(agent.stuck_after, settings.stuck_after)
        if limit is not None and agent.changed_at is not None and _is_stuck(agent, watermark, limit, unwatched):
            detail = {
                "changed_at": agent.changed_at.isoformat(),
                "watermark": watermark.isoformat(),
                "stuck_after": limit,
            }
            stuck.append((agent, detail | {name: getattr(agent, name) for name in DOING}))
    set_time(connection, "stuck_at", [agent.session_id for agent, _ in stuck], now)
    return _record(connection, EventType.STUCK, now, stuck, settings)


def _record(connection: Connection, kind: EventType, now: datetime, found: _Found, settings: Settings) -> list[Notice]:
    """Record an event for each agent, and return a notice for each."""
    moment, limit = to_milliseconds(now), settings.missed_intervals
    record_agent_events(
        connection, kind, [(moment, agent.session_id, agent.agent_name, detail) for agent, detail in found]
    )
    return [
        agent_notice(NoticeKind(kind.value), agent, now, agent.notice_facts(limit) | detail) for agent, detail in found
    ]


def _is_stuck(agent: ReportedAgent, watermark: datetime, limit: int, unwatched: Unwatched) -> bool:
    times = (agent.changed_at, agent.state_changed_at, agent.resumed_at)
    unchanged_since = max(to_milliseconds(time) for time in times if time is not None)
    since = to_milliseconds(agent.since)
    return is_stuck(agent.promise, unchanged_since, since, to_milliseconds(watermark), limit, unwatched)
