"""Silences of half the fleet, told as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection, Table, exists, func, insert, or_, select, update
from sqlalchemy.orm import aliased

from fleetbeat_worker.database import bulk
from fleetbeat_worker.database.tables import Agent, Incident, Liveness, Notification
from fleetbeat_worker.notifications.notice import NAMED, Notice, fleet_notice
from fleetbeat_worker.rules.anomalies import INCIDENT_AGENTS, JOINING, is_incident, is_over, joins
from fleetbeat_worker.rules.enums import EventType, NoticeKind
from fleetbeat_worker.rules.liveness import State, silent_since
from fleetbeat_worker.store.events import record
from fleetbeat_worker.store.sessions import lock_all
from fleetbeat_worker.sweep.queries import Due


def find_incident(connection: Connection, silent: Sequence[Due], now: datetime) -> tuple[int | None, list[Notice]]:
    """Return the incident that agents which are about to be flagged belong to, and what is told of it.

    What stops a fleet at one moment is found sweep after sweep. So those that were flagged in the last minutes count,
    and belong to it, though each of them was told of by itself. Each sweep that adds to an incident tells of it once: a
    silence that nobody is told of would be worse than a second message.
    """
    if not silent:
        return None, []
    incident = open_incident(connection)
    is_young = incident is not None and now - incident.started_at < JOINING
    before = [] if is_young else _told_lately(connection, len(silent), now)
    count = len(silent) + len(before)
    if incident is None and not _are_an_incident(connection, count):
        return None, []
    live = count_live(connection)
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
        incident_id = begin(connection, now, count, live, span)
    elif joins(count, live, incident.started_at, now):
        incident_id = incident.id
        extend(connection, incident, count - again, span)
        detail["agents_before"] = incident.agents
    else:
        if again:  # told by themselves, they are in it no longer, and must not be told as back with it
            leave(connection, incident, again)
        return None, []
    if before:
        take_in(connection, incident_id, [session_id for session_id, _, _ in before])
        detail["told_before"] = len(before)
    record(connection, EventType.INCIDENT, now, {"incident_id": incident_id, **detail})
    names = sorted([agent.agent_name for agent in silent] + [name for _, name, _ in before])[:NAMED]
    return incident_id, [fleet_notice(NoticeKind.INCIDENT, now, {**detail, "names": names})]


def _told_lately(connection: Connection, silent: int, now: datetime) -> list[tuple[UUID, str, datetime]]:
    """Return who was told of singly in the last minutes, if they may be an incident with so many more."""
    told = count_told(connection, now - JOINING)
    if not told or not _are_an_incident(connection, silent + told):
        return []
    return flagged_lately(connection, now - JOINING)


def _are_an_incident(connection: Connection, count: int) -> bool:
    # So many are enough to know, and counting all of a large fleet takes time.
    return count >= INCIDENT_AGENTS and is_incident(count, count_live(connection, 2 * count))


def end_incident(connection: Connection, now: datetime) -> list[Notice]:
    """End the incident that is open if it is over (`is_over`); return what is told of it.

    It waits for batches (`end`), so it comes before anything else that locks agents.
    """
    incident = open_incident(connection)
    if incident is None or not is_over(incident.agents, *silent_of(connection, incident.id), now):
        return []
    silent, away = end(connection, incident.id, now)
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


def open_incident(connection: Connection) -> OpenIncident | None:
    """Return the incident that is open; there is one at most."""
    columns = [getattr(Incident, name) for name in OpenIncident.__slots__]
    query = select(*columns).where(Incident.ended_at.is_(None)).order_by(Incident.id.desc()).limit(1)
    row = connection.execute(query).one_or_none()
    return None if row is None else OpenIncident(*row)


def count_live(connection: Connection, at_most: int | None = None) -> int:
    """Return how many agents are neither ended nor paused; `at_most`: when so many are found that is enough."""
    live = select(Liveness.session_id).where(Liveness.state.not_in(_NOT_LIVE)).limit(at_most).subquery()
    return connection.execute(select(func.count()).select_from(live)).scalar_one()


def count_told(connection: Connection, since: datetime) -> int:
    """Return how many single silences were told since a moment, whatever became of them."""
    told = (Notification.created_at > since, Notification.kind == NoticeKind.DEGRADED.value)
    return connection.execute(select(func.count()).select_from(Notification).where(*told)).scalar_one()


def flagged_lately(connection: Connection, since: datetime) -> list[tuple[UUID, str, datetime]]:
    """Lock the agents that were told of singly since a moment, and are silent still; since when, and their names.

    One that a batch holds is left out: it comes back. They are found by what was told, which is little.
    """
    told = select(Notification.session_id).where(
        Notification.created_at > since, Notification.kind == NoticeKind.DEGRADED.value
    )
    query = (
        select(Agent.session_id, Agent.agent_name, Liveness.registered_at, Liveness.last_seen_at, Liveness.resumed_at)
        .join_from(Agent, Liveness, Liveness.session_id == Agent.session_id)
        .where(Liveness.session_id.in_(told), _SILENT, Liveness.incident_id.is_(None))
        .order_by(Liveness.session_id)
        .with_for_update(of=Liveness, skip_locked=True)
    )
    rows = connection.execute(query)
    return [
        (row.session_id, row.agent_name, silent_since(row.registered_at, row.last_seen_at, row.resumed_at))
        for row in rows
    ]


def take_in(connection: Connection, incident_id: int, session_ids: Sequence[UUID]) -> None:
    """Let agents that were flagged before, and are locked, belong to an incident."""
    bulk.update_all(connection, _LIVENESS, session_ids, {"incident_id": incident_id})


def begin(connection: Connection, now: datetime, agents: int, live_agents: int, span: tuple[datetime, datetime]) -> int:
    """Open an incident and return its id; `span` is from the earliest to the latest of the agents' last signs."""
    values = {"started_at": now, "agents": agents, "live_agents": live_agents}
    statement = insert(Incident).values(**values, first_silent_at=span[0], last_silent_at=span[1])
    return connection.execute(statement.returning(Incident.id)).scalar_one()


def extend(connection: Connection, incident: OpenIncident, agents: int, span: tuple[datetime, datetime]) -> None:
    """Let more agents join an incident."""
    values = {
        "agents": incident.agents + agents,
        "first_silent_at": min(incident.first_silent_at, span[0]),
        "last_silent_at": max(incident.last_silent_at, span[1]),
    }
    connection.execute(update(Incident).where(Incident.id == incident.id).values(values))


def leave(connection: Connection, incident: OpenIncident, agents: int) -> None:
    """Count some agents out of an incident: they were back, and their next silence is one of their own."""
    values = {"agents": incident.agents - agents}
    connection.execute(update(Incident).where(Incident.id == incident.id).values(values))


def silent_of(connection: Connection, incident_id: int) -> tuple[int, datetime | None]:
    """Return how many of an incident's agents are silent still, and when the last of them was flagged."""
    query = select(func.count(), func.max(Liveness.state_changed_at))
    row = connection.execute(query.where(Liveness.incident_id == incident_id, _SILENT)).one()
    return row[0], row[1]


def end(connection: Connection, incident_id: int, now: datetime) -> tuple[list[str], int]:
    """Close an incident and let go of its agents.

    Return the names of those that are silent still, in their order, and how many weren't heard either, but are paused
    or have ended without another session of their name.

    It locks the agents, and waits for them: whoever is locked already by the same transaction may make a circle of it.
    """
    member = Liveness.incident_id == incident_id
    lock_all(connection, member)
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
