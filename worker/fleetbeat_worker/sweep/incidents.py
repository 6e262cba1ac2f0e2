"""Incidents: when most of the fleet falls silent at once, one notification stands for all of its agents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, Table, and_, exists, func, insert, or_, select, update
from sqlalchemy.orm import aliased

from fleetbeat_worker.database import bulk
from fleetbeat_worker.database.tables import Agent, Incident, Liveness, Notification
from fleetbeat_worker.notifications.notice import NAMED, Notice, fleet_notice
from fleetbeat_worker.rules.anomalies import INCIDENT_AGENTS, JOINING, is_incident, is_over, joins
from fleetbeat_worker.rules.enums import EventType, NoticeKind
from fleetbeat_worker.rules.liveness import State, silent_since
from fleetbeat_worker.store.events import record_fleet_event
from fleetbeat_worker.store.sessions import lock_sessions
from fleetbeat_worker.sweep.queries import SweptAgent

_LIVENESS: Table = Liveness.__table__  # type: ignore[assignment] # a mapped class has a Table
_NOT_LIVE = (State.ENDED.value, State.PAUSED.value)
_SILENT = Liveness.state == State.DEGRADED.value


@dataclass(frozen=True, slots=True)
class OpenIncident:
    """A row of `incidents` that hasn't ended."""

    id: int
    started_at: datetime
    agents: int
    live_agents: int
    first_silent_at: datetime
    last_silent_at: datetime


def find_incident(
    connection: Connection, silent: Sequence[SweptAgent], now: datetime
) -> tuple[int | None, list[Notice]]:
    """Return the incident that agents about to be flagged belong to, if any, and its notice.

    When a fleet stops at one moment, its agents are found over many sweeps. So those flagged in the last minutes count,
    too, and become members, although each had a notification of its own. Each sweep that adds agents to an incident
    returns one notice: better a second notification than none for a silent agent.
    """
    if not silent:
        return None, []
    incident = open_incident(connection)
    is_young = incident is not None and now - incident.started_at < JOINING
    earlier = [] if is_young else _flagged_before(connection, len(silent), now)
    count = len(silent) + len(earlier)
    if incident is None and not _are_an_incident(connection, count):
        return None, []
    live = count_live(connection)
    times = [*(agent.since for agent in silent), *(since for _, _, since in earlier)]
    span = min(times), max(times)
    returning = 0 if incident is None else sum(agent.incident_id == incident.id for agent in silent)
    detail = {
        "agents": count,
        "live_agents": live,
        "first_silent_at": span[0].isoformat(),
        "last_silent_at": span[1].isoformat(),
    }
    if incident is None:
        incident_id = begin_incident(connection, now, count, live, span)
    elif joins(count, live, incident.started_at, now):
        incident_id = incident.id
        _extend(connection, incident, count - returning, span)
        detail["agents_before"] = incident.agents
    else:
        if returning:  # they get notifications of their own, so they are members no longer
            _remove_members(connection, incident, returning)
        return None, []
    if earlier:
        bulk.update_all(
            connection, _LIVENESS, [session_id for session_id, _, _ in earlier], {"incident_id": incident_id}
        )
        detail["notified_before"] = len(earlier)
    record_fleet_event(connection, EventType.INCIDENT, now, {"incident_id": incident_id, **detail})
    names = sorted([agent.agent_name for agent in silent] + [name for _, name, _ in earlier])[:NAMED]
    return incident_id, [fleet_notice(NoticeKind.INCIDENT, now, {**detail, "names": names})]


def end_incident(connection: Connection, now: datetime) -> list[Notice]:
    """End the open incident if it is over (`is_over`), and return its notice.

    It waits for batches that have locked members, so it comes before anything else that locks agents.
    """
    incident = open_incident(connection)
    if incident is None or not is_over(incident.agents, *silent_members(connection, incident.id), now):
        return []
    silent, away = _close(connection, incident.id, now)
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
    record_fleet_event(connection, EventType.INCIDENT_OVER, now, {"incident_id": incident.id, **detail})
    return [fleet_notice(NoticeKind.INCIDENT_OVER, now, {**detail, "names": silent[:NAMED]})]


def _flagged_before(connection: Connection, silent: int, now: datetime) -> list[tuple[UUID, str, datetime]]:
    """Return the agents flagged one by one in the last minutes, if together with `silent` more they are an incident."""
    notified = count_notified(connection, now - JOINING)
    if not notified or not _are_an_incident(connection, silent + notified):
        return []
    return _lock_flagged(connection, now - JOINING)


def _are_an_incident(connection: Connection, count: int) -> bool:
    # Counting up to twice as many is enough, and counting all of a large fleet takes time.
    return count >= INCIDENT_AGENTS and is_incident(count, count_live(connection, 2 * count))


def open_incident(connection: Connection) -> OpenIncident | None:
    """Return the open incident; there is at most one."""
    columns = [getattr(Incident, name) for name in OpenIncident.__slots__]
    query = select(*columns).where(Incident.ended_at.is_(None)).order_by(Incident.id.desc()).limit(1)
    row = connection.execute(query).one_or_none()
    return None if row is None else OpenIncident(*row)


def count_live(connection: Connection, at_most: int | None = None) -> int:
    """Count the agents that are neither ended nor paused, up to `at_most`."""
    live = select(Liveness.session_id).where(Liveness.state.not_in(_NOT_LIVE)).limit(at_most).subquery()
    return connection.execute(select(func.count()).select_from(live)).scalar_one()


def count_notified(connection: Connection, since: datetime) -> int:
    """Count the notifications of single silent agents since a given time, whatever became of the agents."""
    return connection.execute(select(func.count()).select_from(Notification).where(_notified(since))).scalar_one()


def _notified(since: datetime) -> ColumnElement[bool]:
    return and_(Notification.created_at > since, Notification.kind == NoticeKind.DEGRADED.value)


def _lock_flagged(connection: Connection, since: datetime) -> list[tuple[UUID, str, datetime]]:
    """Lock the agents notified one by one since a given time that are still silent; return ids, names and since when.

    One that a batch has locked is skipped: it has sent a heartbeat. Notifications are the shortest way to them.
    """
    notified = select(Notification.session_id).where(_notified(since))
    query = (
        select(Agent.session_id, Agent.agent_name, Liveness.registered_at, Liveness.last_seen_at, Liveness.resumed_at)
        .join_from(Agent, Liveness, Liveness.session_id == Agent.session_id)
        .where(Liveness.session_id.in_(notified), _SILENT, Liveness.incident_id.is_(None))
        .order_by(Liveness.session_id)
        .with_for_update(of=Liveness, skip_locked=True)
    )
    return [
        (row.session_id, row.agent_name, silent_since(row.registered_at, row.last_seen_at, row.resumed_at))
        for row in connection.execute(query)
    ]


def begin_incident(
    connection: Connection, now: datetime, agents: int, live_agents: int, span: tuple[datetime, datetime]
) -> int:
    """Open an incident and return its id; `span` is from the earliest to the latest start of a silence."""
    values = {"started_at": now, "agents": agents, "live_agents": live_agents}
    statement = insert(Incident).values(**values, first_silent_at=span[0], last_silent_at=span[1])
    return connection.execute(statement.returning(Incident.id)).scalar_one()


def _extend(connection: Connection, incident: OpenIncident, agents: int, span: tuple[datetime, datetime]) -> None:
    """Count more agents into an incident."""
    values = {
        "agents": incident.agents + agents,
        "first_silent_at": min(incident.first_silent_at, span[0]),
        "last_silent_at": max(incident.last_silent_at, span[1]),
    }
    connection.execute(update(Incident).where(Incident.id == incident.id).values(values))


def _remove_members(connection: Connection, incident: OpenIncident, agents: int) -> None:
    """Count agents out of an incident that had recovered, and are now silent on their own."""
    values = {"agents": incident.agents - agents}
    connection.execute(update(Incident).where(Incident.id == incident.id).values(values))


def silent_members(connection: Connection, incident_id: int) -> tuple[int, datetime | None]:
    """Count the members of an incident that are still silent, and return when the last of them was flagged."""
    query = select(func.count(), func.max(Liveness.state_changed_at))
    row = connection.execute(query.where(Liveness.incident_id == incident_id, _SILENT)).one()
    return row[0], row[1]


def _close(connection: Connection, incident_id: int, now: datetime) -> tuple[list[str], int]:
    """Close an incident and release its members.

    Returns the sorted names of those that are still silent; and how many are paused, or ended without a successor of
    their name, so that they aren't back either.

    It locks the members and waits for them: rows that the transaction has locked before could make a deadlock of it.
    """
    member = Liveness.incident_id == incident_id
    lock_sessions(connection, member)
    silent = select(Agent.agent_name).join(Liveness, Liveness.session_id == Agent.session_id).where(member, _SILENT)
    names = list(connection.execute(silent.order_by(Agent.agent_name)).scalars())
    other = aliased(Agent)
    replaced = exists().where(other.agent_name == Agent.agent_name, other.ended_at.is_(None))
    away = or_(Liveness.state == State.PAUSED.value, (Liveness.state == State.ENDED.value) & ~replaced)
    query = select(func.count()).select_from(Agent).join(Liveness, Liveness.session_id == Agent.session_id)
    number = connection.execute(query.where(member, away)).scalar_one()
    connection.execute(update(Liveness).where(member).values(incident_id=None))
    connection.execute(update(Incident).where(Incident.id == incident_id).values(ended_at=now))
    return names, number
