"""Queries of ingest: what batches and the lane need to know, and what they change."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from operator import attrgetter
from typing import Any
from uuid import UUID

from sqlalchemy import Column, Connection, Row, Table, delete, exists, func, insert, select, text, update

from fleetbeat_shared.messages import Deregister, Heartbeat, Register
from fleetbeat_shared.settings import Settings
from fleetbeat_worker.broker.entries import Entry
from fleetbeat_worker.database import bulk
from fleetbeat_worker.database.column_types import Instant
from fleetbeat_worker.database.tables import (
    Agent,
    Event,
    Liveness,
    Pipeline,
    RejectedMessage,
    StoredHeartbeat,
    StrayHeartbeat,
    Task,
)
from fleetbeat_worker.downtime.outages import read_outages
from fleetbeat_worker.ingest.batch import is_plain
from fleetbeat_worker.ingest.changeset import Changeset
from fleetbeat_worker.ingest.session_state import (
    HEARTBEAT_COLUMNS,
    REPORTED,
    SAID_AT,
    STRAY_COLUMNS,
    AgentRecord,
    Facts,
    LivenessRecord,
)
from fleetbeat_worker.notifications.outbox import add_notices
from fleetbeat_worker.rules.anomalies import DOING
from fleetbeat_worker.rules.enums import LIFECYCLE, TaskState
from fleetbeat_worker.rules.liveness import PROMISE_COLUMNS, State, cached_promise
from fleetbeat_worker.rules.spans import from_milliseconds, to_milliseconds
from fleetbeat_worker.store.tasks import TaskCounts, count_tasks_by_name

_LANE_LOCK = 0x626561740001  # one number for all transactions that apply the lane on PostgreSQL

_AGENTS: Table = Agent.__table__  # type: ignore[assignment]
_LIVENESS: Table = Liveness.__table__  # type: ignore[assignment]
_HEARTBEATS: Table = StoredHeartbeat.__table__  # type: ignore[assignment]
_STRAYS: Table = StrayHeartbeat.__table__  # type: ignore[assignment]
_EVENTS: Table = Event.__table__  # type: ignore[assignment]
_REJECTED: Table = RejectedMessage.__table__  # type: ignore[assignment]

_REPORT_COLUMNS = ("session_id", "reported_at", "reported_entry", "current_work", "changed_at", *REPORTED)
_SEEN_COLUMNS = ("session_id", "state", "state_changed_at", "last_seen_at", "deadline_at")
_LIVENESS_COLUMNS = (*_SEEN_COLUMNS, "registered_at", "resumed_at", *PROMISE_COLUMNS)
_STANDING = ("project", "changed_at", "stuck_at", "flapping_at", "unjudged_at")
_key_of = attrgetter("session_id.int")
_seen_of = attrgetter(*_SEEN_COLUMNS)
_liveness_of = attrgetter(
    *_SEEN_COLUMNS, "registered_at", "resumed_at", *(f"promise.{name}" for name in PROMISE_COLUMNS)
)

_OF_LIVENESS = [_LIVENESS.c[name] for name in _LIVENESS_COLUMNS]
_OF_AN_AGENT = [
    _AGENTS.c.session_id,
    _AGENTS.c.agent_name,
    _AGENTS.c.parallel,
    _AGENTS.c.ended_at,
    _AGENTS.c.reported_at,
    _AGENTS.c.reported_entry,
    _AGENTS.c.open_tasks,
    _AGENTS.c.stale_tasks,
    *(_AGENTS.c[name] for name in _STANDING),
    *(_AGENTS.c[name] for name in SAID_AT.values()),
    *(_AGENTS.c[name] for name in DOING),
]

_OF_THE_SILENT = [_LIVENESS.c.session_id, _LIVENESS.c.incident_id]

# Built once, here: building and adapting them for each batch took a third of a small batch's time.
_READ_PIPELINE = select(Pipeline.watermark, Pipeline.unjudged, exists(select(Task.id)))
_STATES = {state.value: state for state in State}


def open_batch(
    connection: Connection, messages: Sequence[tuple[Entry, Heartbeat]], now: int, settings: Settings
) -> Changeset:
    """Lock and read the sessions that heartbeats name, and what they are judged by. `now`: Redis's, in milliseconds.

    On PostgreSQL the rows are locked in the order of their keys, so that no two transactions (a batch and a sweep, say)
    ever wait for each other in a circle. SQLite has one writer at a time.
    """
    records = _lock_liveness(connection, list({message.session_id for _, message in messages}))
    # Only now, under the locks: what a sweep records, or a registration changes, between would be missed otherwise.
    watermark, unjudged, has_tasks = connection.execute(_READ_PIPELINE).one()
    oldest = _oldest_moment(messages, now)
    named = set()
    for _, message in messages:
        record = records.get(message.session_id)
        if record is not None and (has_tasks or unjudged or not is_plain(message, record, oldest)):
            named.add(message.session_id)
    agents = _read_agents(connection, records, named)
    outages = read_outages(connection, from_milliseconds(oldest))
    tasks: dict[str, TaskCounts] = {}
    if has_tasks:
        stale_since = from_milliseconds(now) - timedelta(seconds=settings.stale_task_seconds)
        tasks = count_tasks_by_name(connection, {agent.agent_name for agent in agents.values()}, stale_since)
    late = [message.id for _, message in messages if _has_ended(records.get(message.session_id))]
    found = select(StoredHeartbeat.id).where(StoredHeartbeat.id.in_(late))
    stored = set(connection.execute(found).scalars()) if late else set()
    facts = Facts(now, _known_by(watermark, now), outages, settings.missed_intervals, tasks, stored)
    return Changeset(facts, agents, {key: record for key, record in records.items() if key not in agents})


def _has_ended(record: LivenessRecord | None) -> bool:
    return record is not None and record.state is State.ENDED


def _oldest_moment(messages: Sequence[tuple[Entry, Heartbeat]], now: int) -> int:
    """Find a moment before which no heartbeat was sent; a little early does no harm."""
    received = min((entry.received_at for entry, _ in messages), default=now)
    buffered = max((message.buffered_seconds or 0 for _, message in messages), default=0)
    return received - round(buffered * 1000)


def _known_by(watermark: datetime | None, now: int) -> int | None:
    """Convert a watermark: a clock that was turned back has not come to it again, and what comes now is of now."""
    return None if watermark is None else min(to_milliseconds(watermark), now)


def lock_lane(connection: Connection) -> None:
    """Wait until no other transaction applies the lane, until the end of this one. SQLite has one writer anyway."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LANE_LOCK})


def open_sessions(
    connection: Connection, messages: Sequence[tuple[Entry, Register | Deregister]], now: int, settings: Settings
) -> Changeset:
    """Lock and read the sessions that registrations and deregistrations change, and what they are judged by.

    These are also the parents that they name, and the live sessions of the same names.
    """
    registrations = [message for _, message in messages if isinstance(message, Register)]
    ids = {message.session_id for _, message in messages}
    ids |= {message.parent_id for message in registrations if message.parent_id is not None}
    names = {message.agent_name for message in registrations}
    namesakes = select(Agent.session_id).where(Agent.agent_name.in_(names), Agent.ended_at.is_(None))
    ids |= set(connection.execute(namesakes).scalars())
    records = _lock_liveness(connection, list(ids))
    agents = _read_agents(connection, records, ids)
    # A registration counts from the agent's last sign, which may lie before an outage.
    signs = (agents[message.session_id].since for message in registrations if message.session_id in agents)
    oldest = min([now, *(entry.received_at for entry, _ in messages), *signs])
    outages = read_outages(connection, from_milliseconds(oldest))
    watermark, *_ = connection.execute(_READ_PIPELINE).one()
    found = connection.execute(
        select(Event.message_id).where(Event.message_id.in_(message.id for _, message in messages))
    )
    stored = {message_id for message_id in found.scalars() if message_id is not None}
    facts = Facts(now, _known_by(watermark, now), outages, settings.missed_intervals, stored=stored)
    return Changeset(facts, agents)


def was_overtaken(connection: Connection, entry: Entry, message: Register | Deregister) -> bool:
    """Tell whether a session was changed by a registration or an end that was received after this one."""
    query = select(func.max(Event.occurred_at)).join(Agent, Agent.session_id == Event.session_id)
    query = query.where(Event.session_id == message.session_id, Event.type.in_(LIFECYCLE))
    changed_at = connection.execute(query).scalar()
    return changed_at is not None and to_milliseconds(changed_at) > entry.received_at


def _lock_liveness(connection: Connection, ids: Sequence[UUID]) -> dict[UUID, LivenessRecord]:
    records = {}
    for session_id, row in bulk.select(connection, _OF_LIVENESS, ids, lock=True):
        state, changed_at, seen_at, due_at, registered_at, resumed_at, *promise = row
        records[session_id] = LivenessRecord(
            session_id, cached_promise(*promise), registered_at, _STATES[state], changed_at, seen_at, due_at, resumed_at
        )
    return records


def _read_agents(
    connection: Connection, records: dict[UUID, LivenessRecord], named: Collection[UUID]
) -> dict[UUID, AgentRecord]:
    """Return all of the sessions that are named; of the others their liveness is enough."""
    agents = {}
    for session_id, row in bulk.select(connection, _OF_AN_AGENT, [key for key in named if key in records]):
        name, parallel, ended_at, reported_at, reported_entry, open_tasks, stale_tasks, *more = row
        record = records[session_id]
        agents[session_id] = AgentRecord(
            session_id,
            record.promise,
            record.registered_at,
            record.state,
            record.state_changed_at,
            record.last_seen_at,
            record.deadline_at,
            record.resumed_at,
            name,
            bool(parallel),
            ended_at,
            (reported_at, reported_entry) if reported_at else None,
            open_tasks,
            stale_tasks,
            **dict(zip(_STANDING, more, strict=False)),
            said_at=dict(zip(SAID_AT, more[len(_STANDING) :], strict=False)),
            doing=dict(zip(DOING, more[len(_STANDING) + len(SAID_AT) :], strict=True)),
        )
    silent = [key for key, agent in agents.items() if agent.state is State.DEGRADED]
    for session_id, (incident_id,) in bulk.select(connection, _OF_THE_SILENT, silent):
        agents[session_id].incident_id = incident_id
    return agents


def write_changes(connection: Connection, changes: Changeset) -> None:
    """Write everything that a changeset has, and note there how many of its rows weren't in SQL already."""
    _write_agents(connection, changes)
    changes.new_heartbeats = bulk.insert(connection, _HEARTBEATS, HEARTBEAT_COLUMNS, changes.heartbeats)
    bulk.insert(connection, _STRAYS, STRAY_COLUMNS, changes.strays)
    bulk.insert_rows(connection, _EVENTS, changes.events)
    add_notices(connection, changes.notices, changes.facts.now)
    changes.new_rejected = bulk.insert_rows(connection, _REJECTED, changes.rejected)
    if changes.idle_tasks_of:
        _reopen_tasks(connection, changes.idle_tasks_of, from_milliseconds(changes.facts.now))


def _reopen_tasks(connection: Connection, names: Collection[str], now: datetime) -> None:
    """Put the tasks in progress back to open, of the agents that have no live session left to work on them."""
    live = select(Agent.session_id).where(Agent.agent_name == Task.agent_name, Agent.ended_at.is_(None))
    in_progress = Task.state == TaskState.IN_PROGRESS.value
    statement = update(Task).where(Task.agent_name.in_(list(names)), in_progress, ~live.exists())
    connection.execute(statement.values(state=TaskState.OPEN.value, updated_at=now))


def _write_agents(connection: Connection, changes: Changeset) -> None:
    # The ended ones first: they make room for the live one of the same name.
    changed = [agent for agent in changes.agents.values() if agent.settings]
    for agent in sorted(changed, key=lambda agent: agent.ended_at is None):
        values = {_AGENTS.c[name]: _whole(_AGENTS.c[name], value) for name, value in agent.settings.items()}
        if agent.is_new:
            connection.execute(insert(_AGENTS).values({_AGENTS.c.session_id: agent.session_id, **values}))
        else:
            connection.execute(update(_AGENTS).where(_AGENTS.c.session_id == agent.session_id).values(values))
    _write_liveness(connection, changes)
    rows = [
        (agent.session_id, *(agent.reports.get(name) for name in _REPORT_COLUMNS[1:]))
        for agent in changes.agents.values()
        if agent.reports
    ]
    bulk.update(connection, _AGENTS, _REPORT_COLUMNS, rows, keep_when_null=True)


def _write_liveness(connection: Connection, changes: Changeset) -> None:
    promised = [agent for agent in changes.agents.values() if agent.promised]
    new = [_liveness_of(agent) for agent in promised if agent.is_new]
    bulk.insert(connection, _LIVENESS, _LIVENESS_COLUMNS, new)
    again = [_liveness_of(agent) for agent in promised if not agent.is_new]
    bulk.update(connection, _LIVENESS, _LIVENESS_COLUMNS, again)
    seen: list[LivenessRecord] = [agent for agent in changes.agents.values() if agent.seen and not agent.promised]
    seen += [record for record in changes.plain.values() if record.seen]
    # In the order of the table, so that neighbours are written one after the other.
    bulk.update(connection, _LIVENESS, _SEEN_COLUMNS, [_seen_of(record) for record in sorted(seen, key=_key_of)])


def _whole(column: Column[Any], value: Any) -> Any:  # noqa: ANN401 - columns have many types
    is_moment = isinstance(column.type, Instant) and value is not None
    return from_milliseconds(value) if is_moment else value


def is_stored(connection: Connection, message_id: UUID, session_id: UUID, received_at: datetime) -> bool:
    """Return whether a session's message that arrived then has been stored.

    A heartbeat is a row of its own, what else was applied is an event.
    """
    beat, event = StoredHeartbeat, Event
    heartbeat = exists().where(beat.id == message_id, beat.session_id == session_id, beat.received_at == received_at)
    other = exists().where(
        event.message_id == message_id, event.session_id == session_id, event.occurred_at == received_at
    )
    return bool(connection.execute(select(heartbeat | other)).scalar_one())


def rejected_among(connection: Connection, entries: Collection[Entry]) -> set[str]:
    """Find which entries were set aside when they were delivered before, and maybe some others, by their keys."""
    if not entries:
        return set()
    times = [entry.key.partition("-")[0] for entry in entries]
    first, last = min(times), max(times)
    query = select(RejectedMessage.entry_id)
    if len({len(time) for time in times}) == 1:
        # By their times, as that is one look for a batch; "-" has different places in different orders of text.
        query = query.where(RejectedMessage.entry_id.between(first, str(int(last) + 1)))
    else:
        query = query.where(RejectedMessage.entry_id.in_([entry.key for entry in entries]))
    return set(connection.execute(query).scalars())


def take_rejected(connection: Connection, rejected_id: int) -> Row[str, datetime, bytes] | None:
    """Take out a rejected message; None if it isn't there any more."""
    columns = RejectedMessage.entry_id, RejectedMessage.received_at, RejectedMessage.raw
    query = delete(RejectedMessage).where(RejectedMessage.id == rejected_id).returning(*columns)
    return connection.execute(query).one_or_none()
