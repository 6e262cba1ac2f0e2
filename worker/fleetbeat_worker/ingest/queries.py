"""Reading what a batch of messages needs to know, and writing what it changes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from operator import attrgetter
from typing import Any
from uuid import UUID

from sqlalchemy import Column, Connection, Table, and_, delete, exists, insert, or_, select, text, update

from fleetbeat_shared.messages import Deregister, Heartbeat, Reason, Register
from fleetbeat_shared.settings import Settings
from fleetbeat_worker.broker.inbox import Entry, is_credible, is_credible_place
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
from fleetbeat_worker.ingest.batch import Batch, is_plain
from fleetbeat_worker.ingest.session_state import (
    HEARTBEAT_COLUMNS,
    REPORTED,
    STRAY_COLUMNS,
    AgentRecord,
    Facts,
    LifecycleEvent,
    LivenessRecord,
)
from fleetbeat_worker.notifications.outbox import add_notices
from fleetbeat_worker.rules.anomalies import DOING
from fleetbeat_worker.rules.enums import LIFECYCLE, TaskState
from fleetbeat_worker.rules.liveness import PROMISE_COLUMNS, State, cached_promise
from fleetbeat_worker.rules.spans import from_milliseconds, to_milliseconds
from fleetbeat_worker.store.tasks import TaskCounts, count_tasks_by_name

_REGISTRATION_LOCK = 0x626561740001  # one number for all batches with registrations on PostgreSQL

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
    _AGENTS.c.lifecycle_entry,
    _AGENTS.c.reported_at,
    _AGENTS.c.reported_entry,
    _AGENTS.c.open_tasks,
    _AGENTS.c.stale_tasks,
    *(_AGENTS.c[name] for name in _STANDING),
    *(_AGENTS.c[name] for name in DOING),
]

_OF_THE_SILENT = [_LIVENESS.c.session_id, _LIVENESS.c.incident_id]

# Built once, here: building and adapting them for each batch took a third of a small batch's time.
_READ_PIPELINE = select(Pipeline.watermark, Pipeline.unjudged, exists(select(Task.id)))
_STATES = {state.value: state for state in State}


def open_batch(
    connection: Connection,
    messages: Sequence[tuple[Entry, Register | Heartbeat | Deregister]],
    now: datetime,
    settings: Settings,
) -> Batch:
    """Lock and read the agents that messages name, and what they are judged by.

    On PostgreSQL the rows are locked in the order of their keys, so that no two batches (or a batch and a sweep) ever
    wait for each other in a circle. SQLite has one writer at a time.
    """
    ids = {message.session_id for _, message in messages}
    registrations = [message for _, message in messages if isinstance(message, Register)]
    named: set[UUID] = set()
    if registrations:
        named = {message.parent_id for message in registrations if message.parent_id is not None}
        named |= _live_namesakes(connection, {message.agent_name for message in registrations})
    records = _lock_liveness(connection, list(ids | named))
    # Only now, under the locks: what a sweep records, or a registration changes, between would be missed otherwise.
    watermark, unjudged, has_tasks = connection.execute(_READ_PIPELINE).one()
    moment = to_milliseconds(now)
    oldest = _oldest_moment(messages, moment)
    for _, message in messages:
        record = records.get(message.session_id)
        if record is not None and (has_tasks or unjudged or not is_plain(message, record, oldest)):
            named.add(message.session_id)
    agents = _read_agents(connection, records, named)
    # A registration counts from the agent's last sign, which may lie before an outage.
    signs = (agents[message.session_id].since for message in registrations if message.session_id in agents)
    outages = read_outages(connection, from_milliseconds(min([oldest, *signs])))
    tasks: dict[str, TaskCounts] = {}
    if has_tasks:
        names = {agent.agent_name for agent in agents.values()} | {message.agent_name for message in registrations}
        tasks = count_tasks_by_name(connection, names, now - timedelta(seconds=settings.stale_task_seconds))
    # A clock that was turned back has not come to the watermark again: what is heard now is no older than that.
    known = None if watermark is None else min(to_milliseconds(watermark), moment)
    applied = _settle_order(connection, messages, agents, moment)
    lifecycles = _read_lifecycles(connection, messages, agents, moment)
    facts = Facts(moment, known, outages, settings.missed_intervals, tasks, applied, lifecycles)
    return Batch(facts, agents, {key: record for key, record in records.items() if key not in agents})


def _settle_order(
    connection: Connection,
    messages: Sequence[tuple[Entry, Register | Heartbeat | Deregister]],
    agents: dict[UUID, AgentRecord],
    now: int,
) -> set[UUID]:
    """Let no place of the future outlast what made it: a clock that was set back, or a sender's explicit id.

    What comes next counts as newer then. So that a replay doesn't, return the registrations and ends of `messages` that
    were applied before, as far as their places don't tell.
    """
    doubtful = set()
    for agent in agents.values():
        if not is_credible_place(agent.lifecycle_entry, now):
            agent.lifecycle_entry = 0
            doubtful.add(agent.session_id)
    ids = [
        message.id
        for entry, message in messages
        if not isinstance(message, Heartbeat)
        and (message.session_id in doubtful or not is_credible(entry.milliseconds, now))
    ]
    if not ids:
        return set()
    rows = connection.execute(select(Event.message_id).where(Event.message_id.in_(ids))).scalars()
    return {message_id for message_id in rows if message_id is not None}


def _read_lifecycles(
    connection: Connection,
    messages: Sequence[tuple[Entry, Register | Heartbeat | Deregister]],
    agents: dict[UUID, AgentRecord],
    now: int,
) -> dict[UUID, list[LifecycleEvent]]:
    """Return what opened and ended the sessions of which a registration or an end comes after newer ones."""
    overtaken = {
        message.session_id
        for entry, message in messages
        if not isinstance(message, Heartbeat)
        and message.session_id in agents
        and entry.arrival(now)[1] <= agents[message.session_id].lifecycle_entry
    }
    found: dict[UUID, list[LifecycleEvent]] = {}
    for session_id in overtaken:
        query = select(Event.type, Event.occurred_at, Event.message_id, Event.detail)
        rows = connection.execute(query.where(Event.session_id == session_id, Event.type.in_(LIFECYCLE)))
        found[session_id] = [LifecycleEvent(kind, to_milliseconds(at), *told) for kind, at, *told in rows]
    return found


def _live_namesakes(connection: Connection, names: Collection[str]) -> set[UUID]:
    if connection.dialect.name == "postgresql":
        # Two batches at once must not each find a name free. Registrations are rare: one batch with any at a time.
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _REGISTRATION_LOCK})
    query = select(Agent.session_id).where(Agent.agent_name.in_(list(names)), Agent.ended_at.is_(None))
    return set(connection.execute(query).scalars())


def _oldest_moment(messages: Sequence[tuple[Entry, Register | Heartbeat | Deregister]], now: int) -> int:
    """Return a moment, in milliseconds, before which no message was sent; a little early does no harm."""
    if not messages:
        return now
    received = min(map(int, {entry.id.partition("-")[0] for entry, _ in messages}))  # many share a millisecond
    first_read = min((entry.first_read_at for entry, _ in messages if entry.first_read_at is not None), default=now)
    buffered = max(
        (message.buffered_seconds or 0 for _, message in messages if isinstance(message, Heartbeat)), default=0
    )
    return min(received, first_read, now) - round(buffered * 1000)


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
        name, parallel, ended_at, lifecycle_entry, reported_at, reported_entry, open_tasks, stale_tasks, *more = row
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
            lifecycle_entry,
            (reported_at, reported_entry) if reported_at else None,
            open_tasks,
            stale_tasks,
            **dict(zip(_STANDING, more, strict=False)),
            doing=dict(zip(DOING, more[len(_STANDING) :], strict=True)),
        )
    silent = [key for key, agent in agents.items() if agent.state is State.DEGRADED]
    for session_id, (incident_id,) in bulk.select(connection, _OF_THE_SILENT, silent):
        agents[session_id].incident_id = incident_id
    return agents


def write_batch(connection: Connection, batch: Batch) -> None:
    """Write everything that a batch changed, and tell it how many of its rows weren't there already."""
    _write_agents(connection, batch)
    batch.new_heartbeats = bulk.insert(connection, _HEARTBEATS, HEARTBEAT_COLUMNS, batch.heartbeats)
    bulk.insert(connection, _STRAYS, STRAY_COLUMNS, batch.strays)
    bulk.insert_rows(connection, _EVENTS, batch.events)
    add_notices(connection, batch.notices, batch.facts.now)
    batch.new_rejected = bulk.insert_rows(connection, _REJECTED, batch.rejected)
    if batch.idle_tasks_of:
        _reopen_tasks(connection, batch.idle_tasks_of, from_milliseconds(batch.facts.now))


def _reopen_tasks(connection: Connection, names: Collection[str], now: datetime) -> None:
    """Put the tasks in progress back to open, of the agents that have no live session left to work on them."""
    live = select(Agent.session_id).where(Agent.agent_name == Task.agent_name, Agent.ended_at.is_(None))
    in_progress = Task.state == TaskState.IN_PROGRESS.value
    statement = update(Task).where(Task.agent_name.in_(list(names)), in_progress, ~live.exists())
    connection.execute(statement.values(state=TaskState.OPEN.value, updated_at=now))


def _write_agents(connection: Connection, batch: Batch) -> None:
    # The ended ones first: they make room for the live one of the same name.
    changed = [agent for agent in batch.agents.values() if agent.settings]
    for agent in sorted(changed, key=lambda agent: agent.ended_at is None):
        values = {_AGENTS.c[name]: _whole(_AGENTS.c[name], value) for name, value in agent.settings.items()}
        if agent.is_new:
            connection.execute(insert(_AGENTS).values({_AGENTS.c.session_id: agent.session_id, **values}))
        else:
            connection.execute(update(_AGENTS).where(_AGENTS.c.session_id == agent.session_id).values(values))
    _write_liveness(connection, batch)
    rows = [
        (agent.session_id, *(agent.reports.get(name) for name in _REPORT_COLUMNS[1:]))
        for agent in batch.agents.values()
        if agent.reports
    ]
    bulk.update(connection, _AGENTS, _REPORT_COLUMNS, rows, keep_when_null=True)


def _write_liveness(connection: Connection, batch: Batch) -> None:
    promised = [agent for agent in batch.agents.values() if agent.promised]
    new = [_liveness_of(agent) for agent in promised if agent.is_new]
    bulk.insert(connection, _LIVENESS, _LIVENESS_COLUMNS, new)
    again = [_liveness_of(agent) for agent in promised if not agent.is_new]
    bulk.update(connection, _LIVENESS, _LIVENESS_COLUMNS, again)
    seen: list[LivenessRecord] = [agent for agent in batch.agents.values() if agent.seen and not agent.promised]
    seen += [record for record in batch.plain.values() if record.seen]
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
    """Return which entries were set aside when they were delivered before, and maybe some others, by their ids."""
    if not entries:
        return set()
    times = [entry.id.partition("-")[0] for entry in entries]
    first, last = min(times), max(times)
    query = select(RejectedMessage.entry_id)
    if len({len(time) for time in times}) == 1:
        # By their times, as that is one look for a batch; "-" has different places in different orders of text.
        query = query.where(RejectedMessage.entry_id.between(first, str(int(last) + 1)))
    else:
        query = query.where(RejectedMessage.entry_id.in_([entry.id for entry in entries]))
    return set(connection.execute(query).scalars())


def find_overtaken(connection: Connection, since: datetime, limit: int) -> list[int]:
    """Return the oldest rejected messages, set aside after `since`, whose awaited session is known by now.

    Or open anew, if it had ended: then those that arrived after the registration that opened it.

    Not older ones, so that what was set aside long ago isn't dug up by a registration of much later.
    """
    query = (
        select(RejectedMessage.id)
        .join(Agent, Agent.session_id == RejectedMessage.awaits_session_id)
        .join(Liveness, Liveness.session_id == Agent.session_id)
        .where(RejectedMessage.rejected_at > since)
        .where(
            or_(
                RejectedMessage.reason != Reason.SESSION_ENDED.value,
                and_(Agent.ended_at.is_(None), RejectedMessage.received_at >= Liveness.registered_at),
            )
        )
        .order_by(RejectedMessage.received_at, RejectedMessage.id)
        .limit(limit)
    )
    return list(connection.execute(query).scalars())


def give_up(connection: Connection, rejected_id: int, reason: str, detail: str) -> None:
    """Leave a rejected message where it is, for another reason, and await nothing any more."""
    values = {"reason": reason, "detail": detail, "awaits_session_id": None}
    connection.execute(update(RejectedMessage).where(RejectedMessage.id == rejected_id).values(values))


def take_rejected(connection: Connection, ids: Collection[int]) -> list[Entry]:
    """Take out rejected messages by their ids, in the order of the stream."""
    query = (
        select(RejectedMessage.id, RejectedMessage.entry_id, RejectedMessage.received_at, RejectedMessage.raw)
        .where(RejectedMessage.id.in_(list(ids)))
        .order_by(RejectedMessage.received_at, RejectedMessage.id)
    )
    if connection.dialect.name == "postgresql":
        query = query.with_for_update()
    rows = connection.execute(query).fetchall()
    if rows:
        connection.execute(delete(RejectedMessage).where(RejectedMessage.id.in_([row.id for row in rows])))
    return [Entry(row.entry_id, row.raw, to_milliseconds(row.received_at)) for row in rows]
