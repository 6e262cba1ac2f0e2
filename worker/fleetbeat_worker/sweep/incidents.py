"""Silences of half the fleet, told as one."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection

from fleetbeat_worker.notifications.notice import NAMED, fleet_notice
from fleetbeat_worker.notifications.outbox import Notice
from fleetbeat_worker.rules.enums import EventType, NoticeKind
from fleetbeat_worker.rules.incidents import INCIDENT_AGENTS, JOINING, is_incident, is_over, joins
from fleetbeat_worker.sweep import incident_rows as store
from fleetbeat_worker.sweep.queries import Due, record


def find_incident(connection: Connection, silent: Sequence[Due], now: datetime) -> tuple[int | None, list[Notice]]:
    """Return the incident that agents which are about to be flagged belong to, and what is told of it.

    What stops a fleet at one moment is found sweep after sweep. So those that were flagged in the last minutes count,
    and belong to it, though each of them was told of by itself. Each sweep that adds to an incident tells of it once: a
    silence that nobody is told of would be worse than a second message.
    """
    if not silent:
        return None, []
    incident = store.open_incident(connection)
    is_young = incident is not None and now - incident.started_at < JOINING
    before = [] if is_young else _told_lately(connection, len(silent), now)
    count = len(silent) + len(before)
    if incident is None and not _are_an_incident(connection, count):
        return None, []
    live = store.count_live(connection)
    moments = [*(agent.since for agent in silent), *(since for _, _, since in before)]
    span = min(moments), max(moments)
    again = 0 if incident is None else sum(agent.incident_id == incident.id for agent in silent)
    detail = {
        "agents": count,
        "live_agents": live,
        "first_silent_at": span[0].isoformat(),
        "last_silent_at": span[1].isoformat(),
    }
    if incident is None:
        incident_id = store.begin(connection, now, count, live, span)
    elif joins(count, live, incident.started_at, now):
        incident_id = incident.id
        store.extend(connection, incident, count - again, span)
        detail["agents_before"] = incident.agents
    else:
        if again:  # told by themselves, they are in it no longer, and must not be told as back with it
            store.leave(connection, incident, again)
        return None, []
    if before:
        store.take_in(connection, incident_id, [session_id for session_id, _, _ in before])
        detail["told_before"] = len(before)
    record(connection, EventType.INCIDENT, now, {"incident_id": incident_id, **detail})
    names = sorted([agent.agent_name for agent in silent] + [name for _, name, _ in before])[:NAMED]
    return incident_id, [fleet_notice(NoticeKind.INCIDENT, now, {**detail, "names": names})]


def _told_lately(connection: Connection, silent: int, now: datetime) -> list[tuple[UUID, str, datetime]]:
    """Return who was told of singly in the last minutes, if they may be an incident with so many more."""
    told = store.count_told(connection, now - JOINING)
    if not told or not _are_an_incident(connection, silent + told):
        return []
    return store.flagged_lately(connection, now - JOINING)


def _are_an_incident(connection: Connection, count: int) -> bool:
    # So many are enough to know, and counting all of a large fleet takes time.
    return count >= INCIDENT_AGENTS and is_incident(count, store.count_live(connection, 2 * count))


def end_incident(connection: Connection, now: datetime) -> list[Notice]:
    """End the incident that is open if it is over (`is_over`); return what is told of it.

    It waits for batches (`store.end`), so it comes before anything else that locks agents.
    """
    incident = store.open_incident(connection)
    if incident is None or not is_over(incident.agents, *store.silent_of(connection, incident.id), now):
        return []
    silent, away = store.end(connection, incident.id, now)
    detail = {
        "agents": incident.agents,
        "live_agents": incident.live_agents,
        "back": max(0, incident.agents - len(silent)),
        "silent": len(silent),
        "away": away,
        "started_at": incident.started_at.isoformat(),
        "first_silent_at": incident.first_silent_at.isoformat(),
        "last_silent_at": incident.last_silent_at.isoformat(),
    }
    record(connection, EventType.INCIDENT_OVER, now, {"incident_id": incident.id, **detail})
    return [fleet_notice(NoticeKind.INCIDENT_OVER, now, {**detail, "names": silent[:NAMED]})]
