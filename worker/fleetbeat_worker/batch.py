"""What a batch of messages changes, worked out in memory.

A batch knows the agents that its messages name, as SQL has them, and applies the messages in the order of the stream.
It touches no database and no clock: `store.batches` reads what it needs and writes what it found. Every moment here is
an integer of milliseconds since 1970, as in the ids of the stream: making datetimes took a third of a batch's time.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from fleetbeat_shared.errors import InvalidMessage
from fleetbeat_shared.liveness import (
    UNJUDGEABLE,
    Promise,
    State,
    default_grace_seconds,
    silent_since,
)
from fleetbeat_shared.messages import MAX_MESSAGE_BYTES, Deregister, Heartbeat, Reason, Register, parse_message
from fleetbeat_shared.replies import Reply
from fleetbeat_worker.column_types import from_milliseconds, to_milliseconds
from fleetbeat_worker.deadlines import deadline_of
from fleetbeat_worker.doing import changed_at
from fleetbeat_worker.inbox import place_milliseconds
from fleetbeat_worker.notices import Who, agent_notice, promise_facts
from fleetbeat_worker.tables import EventType, NoticeKind

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Set as AbstractSet

    from fleetbeat_worker.inbox import Entry
    from fleetbeat_worker.store.notifications import Notice
    from fleetbeat_worker.store.tasks import TaskCounts

Row = dict[str, Any]

REPORTED = ("progress", "work_item_id", "status", "summary", "error", "open_tasks", "stale_tasks", "metadata")
"""What a heartbeat may say of its agent; what it leaves out stays as it was."""

TASK_COUNTS = ("open_tasks", "stale_tasks")
"""Of these, what a heartbeat leaves out is counted, if its agent has tasks."""

HEARTBEAT_COLUMNS = ("id", "session_id", "received_at", "seen_at", "sent_at", *REPORTED)
"""What a row of `heartbeats` holds, in this order."""

STRAY_COLUMNS = ("id", "received_at")
"""What a row of `stray_heartbeats` holds, in this order."""

STRAY_MILLISECONDS = 86_400_000
"""How far an id's time may be from the receipt before the heartbeat counts as a stray: partitions have a day each."""

_UUID = rb'\s*:\s*"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})"'
_OWN_ID = re.compile(rb'"id"' + _UUID, re.IGNORECASE)
_OWN_SESSION = re.compile(rb'"session_id"' + _UUID, re.IGNORECASE)

_MORE_THAN_A_SIGN = frozenset({*REPORTED, "reply"})
_UNTROUBLED = frozenset({State.PENDING, State.OK, State.PAUSED})
_SETTLED = frozenset({State.OK, State.PAUSED})
"""What a heartbeat leaves as it is: only the end of a pause, or of the session, ends a pause."""

_TOLD = {
    "interval_seconds",
    "schedule",
    "time_zone",
    "grace_seconds",
    "missed_intervals",
    "stuck_after",
    "project",
    "work",
    "parent_id",
}
"""What the event of a registration says of it."""

_said_by = attrgetter(*REPORTED)
_NOTHING_SAID = (None,) * len(REPORTED)


@dataclass(slots=True)
class LivenessRecord:
    """What a session promised and when it was seen, as SQL has it, and as the batch leaves it."""

    session_id: UUID
    promise: Promise
    registered_at: int
    state: State
    state_changed_at: int
    last_seen_at: int | None
    deadline_at: int
    resumed_at: int | None
    seen: bool = field(default=False, kw_only=True)
    """Whether any of this changed."""

    @property
    def since(self) -> int:
        """From when on silence counts."""
        return silent_since(self.registered_at, self.last_seen_at, self.resumed_at)


@dataclass(slots=True)
class AgentRecord(LivenessRecord):
    """All that a batch may need to know of a session."""

    agent_name: str
    parallel: bool
    ended_at: int | None
    lifecycle_entry: int
    reported: tuple[int, int] | None
    """`seen_at` and position of the newest heartbeat that said anything."""
    open_tasks: int | None = None
    stale_tasks: int | None = None
    project: str | None = None
    doing: Row = field(default_factory=dict)
    """What it last said of what it does (`doing.DOING`)."""
    changed_at: int | None = None
    stuck_at: int | None = None
    flapping_at: int | None = None
    incident_id: int | None = None
    unjudged_at: int | None = None
    settings: Row = field(default_factory=dict)
    """Columns of `agents` that a registration or an end changed."""
    reports: Row = field(default_factory=dict)
    """Columns of `agents` that heartbeats changed."""
    is_new: bool = False
    promised: bool = False
    """Whether a registration changed what `liveness` has of it."""

    def set(self, **settings: Any) -> None:  # noqa: ANN401 - columns have many types
        """Set columns of `agents`; what an earlier heartbeat of the batch reported for them is overruled."""
        self.settings |= settings
        for name in settings:
            self.reports.pop(name, None)


@dataclass(slots=True)
class Facts:
    """What a batch is judged by, beside its agents; read in the same transaction."""

    now: int
    """Redis's time when the batch was read."""
    watermark: int | None
    """As the last sweep left it."""
    outages: list[tuple[int, int]]
    """Spans in which nobody watched, in their order."""
    missed_limit: int
    tasks: Mapping[str, TaskCounts]
    """How much work agents have, by name; one that never had a task is absent."""
    applied: AbstractSet[UUID] = frozenset()
    """Registrations and ends that were applied before, as far as their place in the stream doesn't tell."""


@dataclass(slots=True)
class Batch:
    """The changes of one transaction."""

    facts: Facts
    agents: dict[UUID, AgentRecord]
    plain: dict[UUID, LivenessRecord] = field(default_factory=dict)
    """Sessions of which the batch has only heartbeats that `is_plain` tells: no more of them is needed."""
    heartbeats: list[tuple[Any, ...]] = field(default_factory=list)
    """Rows of `HEARTBEAT_COLUMNS`."""
    strays: list[tuple[UUID, int]] = field(default_factory=list)
    """Rows of `STRAY_COLUMNS`."""
    events: list[Row] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)
    """What people are told of it."""
    rejected: list[Row] = field(default_factory=list)
    idle_tasks_of: set[str] = field(default_factory=set)
    """Names of agents whose tasks in progress are open again."""
    replies: list[tuple[UUID, Reply]] = field(default_factory=list)
    new_heartbeats: int = 0
    """How many of the heartbeats SQL didn't have, once they are written: the others were delivered again."""
    new_rejected: int = 0

    def apply(self, entry: Entry, message: Register | Heartbeat | Deregister) -> None:
        """Apply one message."""
        match message:
            case Heartbeat():
                self._beat(entry, message)
            case Register():
                self._register(entry, message)
            case Deregister():
                self._deregister(entry, message)

    def reject(
        self,
        entry: Entry,
        reason: Reason,
        detail: str,
        message: Register | Heartbeat | Deregister | None = None,
        awaits: UUID | None = None,
    ) -> None:
        """Set a message aside, and tell the sender if it waits."""
        self.rejected.append(
            {
                "entry_id": entry.id,
                "received_at": entry.arrival(self.facts.now)[0],
                "reason": reason.value,
                "detail": detail,
                "session_id": message.session_id if message else None,
                "rejected_at": self.facts.now,
                "awaits_session_id": awaits,
                "raw": entry.wire[:MAX_MESSAGE_BYTES],
            }
        )
        if isinstance(message, Heartbeat) and message.reply:
            self.replies.append((message.id, Reply(ok=False, code=reason.value, session_id=message.session_id)))

    def _beat(self, entry: Entry, message: Heartbeat) -> None:
        record = self.plain.get(message.session_id) or self.agents.get(message.session_id)
        if record is None:
            detail = f"no session {message.session_id} is registered"
            self.reject(entry, Reason.UNKNOWN_SESSION, detail, message, awaits=message.session_id)
            return
        agent = record if isinstance(record, AgentRecord) else None
        received_at, position = entry.arrival(self.facts.now)
        if agent is not None and agent.ended_at is not None and position > agent.lifecycle_entry:
            detail = f"the session of {agent.agent_name} ended at {from_milliseconds(agent.ended_at).isoformat()}"
            # It may have overtaken a registration that opens the session anew.
            self.reject(entry, Reason.SESSION_ENDED, detail, message, awaits=message.session_id)
            return
        seen_at = received_at
        if message.buffered_seconds:
            seen_at -= round(message.buffered_seconds * 1000)
        said = _NOTHING_SAID if agent is None else _said_by(message)
        counted = self._count_tasks(agent, message) if agent is not None and self.facts.tasks else {}
        stored = _said_by(message.model_copy(update=counted)) if counted else said
        sent_at = to_milliseconds(message.sent_at)
        self.heartbeats.append((message.id, message.session_id, received_at, seen_at, sent_at, *stored))
        if abs((message.id.int >> 80) - received_at) >= STRAY_MILLISECONDS:
            self.strays.append((message.id, received_at))
        if agent is None:
            self._see(record, seen_at)
            return
        if message.progress:
            self._event(EventType.HEARTBEAT, seen_at, agent, message_id=message.id, text=message.progress)
        order = (seen_at, position)
        # A heartbeat of before the session was opened anew says nothing of it now.
        self._see(agent, seen_at, counts=agent.reported is None or order >= agent.reported)
        if said != _NOTHING_SAID or agent.agent_name in self.facts.tasks:
            self._report(agent, order, dict(zip(REPORTED, said, strict=True)), counted)
        if message.reply:
            answer = Reply(
                ok=True,
                session_id=message.session_id,
                agent_name=agent.agent_name,
                timestamp=from_milliseconds(seen_at),
                progress=message.progress,
            )
            self.replies.append((message.id, answer))

    def _see(self, record: LivenessRecord, seen_at: int, *, counts: bool = True) -> None:
        """Move `last_seen_at` forward, and if it counts what hangs on it; an older heartbeat moves nothing."""
        if record.last_seen_at is not None and seen_at <= record.last_seen_at:
            return
        before, record.last_seen_at = record.since, seen_at
        record.seen = True
        if record.state is State.ENDED or not counts:
            return
        try:
            record.deadline_at = self._deadline(record.promise, record.since)
        except UNJUDGEABLE:
            return  # it counts as a sign; the sweep that finds the old deadline passed sets the agent aside
        if isinstance(record, AgentRecord) and record.unjudged_at is not None:
            record.unjudged_at = None
            record.set(unjudged_at=None)
        if record.state in _SETTLED:
            return
        # A heartbeat that waited somewhere for long fills history, and revives nobody.
        watermark = self.facts.watermark
        if watermark is not None and self._deadline(record.promise, seen_at) <= watermark:
            return
        if isinstance(record, AgentRecord) and record.state is State.DEGRADED:
            self._recover(record, before, seen_at)
        self._change_state(record, State.OK, seen_at)

    def _recover(self, agent: AgentRecord, silent_since: int, seen_at: int) -> None:
        """Record that a degraded agent is heard again, and tell it unless its silence wasn't told by itself either."""
        detail = {"silent_seconds": (seen_at - silent_since) / 1000}
        self._event(EventType.RECOVERED, seen_at, agent, detail=detail)
        if agent.flapping_at is None and agent.incident_id is None:
            facts = {"since": from_milliseconds(silent_since).isoformat(), **detail}
            self._tell(NoticeKind.RECOVERED, seen_at, agent, facts)

    def flap(self, agent: AgentRecord) -> None:
        """Tell that an agent flaps, instead of that it recovered: it changes its state too often for more."""
        recovery = (agent.session_id, NoticeKind.RECOVERED)
        self.notices = [notice for notice in self.notices if (notice.session_id, notice.kind) != recovery]
        agent.flapping_at = self.facts.now
        agent.set(flapping_at=agent.flapping_at)
        detail = {"state": agent.state.value}
        self._event(EventType.FLAPPING, self.facts.now, agent, detail=detail)
        self._tell(NoticeKind.FLAPPING, self.facts.now, agent, detail)

    def _do_something_else(self, agent: AgentRecord, seen_at: int, since: int) -> None:
        """Note that what an agent does has changed, since when, and that it is stuck no longer."""
        before, agent.changed_at = agent.changed_at, since
        agent.reports["changed_at"] = since
        if agent.stuck_at is None:
            return
        agent.stuck_at = None
        agent.set(stuck_at=None)
        detail: Row = {"changed_at": from_milliseconds(since).isoformat()}
        if before is not None:
            detail |= {"unchanged_seconds": (seen_at - before) / 1000}
        self._event(EventType.UNSTUCK, seen_at, agent, detail=detail)
        self._tell(NoticeKind.UNSTUCK, seen_at, agent, {**detail, **agent.doing})

    def _tell(self, kind: NoticeKind, at: int, agent: AgentRecord, detail: Row) -> None:
        facts = {**detail, **promise_facts(agent.promise, self.facts.missed_limit)}
        who = Who(agent.session_id, agent.agent_name, agent.project)
        self.notices.append(agent_notice(kind, who, from_milliseconds(at), facts))

    def _count_tasks(self, agent: AgentRecord, message: Heartbeat) -> Row:
        """Return the counts of tasks that a heartbeat left out, as they are now."""
        tasks = self.facts.tasks.get(agent.agent_name)
        counts = {} if tasks is None else {"open_tasks": tasks.open, "stale_tasks": tasks.stale}
        return {name: count for name, count in counts.items() if getattr(message, name) is None}

    def _report(self, agent: AgentRecord, order: tuple[int, int], said: Row, counted: Row) -> None:
        """Take over what a heartbeat says of its agent, unless a newer one has spoken."""
        since = changed_at(agent, order, said)
        if since is not None:
            self._do_something_else(agent, order[0], since)
        if agent.reported is not None and order < agent.reported:
            return
        reported = {name: value for name, value in said.items() if value is not None}
        if not reported.get("progress"):
            reported.pop("progress", None)
        if agent.agent_name in self.facts.tasks:
            self._report_counts(agent, order[0], reported, counted)
        if not reported:
            return
        if "progress" in reported:
            reported["current_work"] = reported["progress"]
        agent.reported = order
        agent.reports |= reported | {"reported_at": order[0], "reported_entry": order[1]}

    def _report_counts(self, agent: AgentRecord, seen_at: int, reported: Row, counted: Row) -> None:
        """Take over the counts that a heartbeat lacked, or take out those that it has if a newer heartbeat was seen.

        The newer one had them given or counted, even if it said nothing.
        """
        if seen_at != agent.last_seen_at:
            for name in TASK_COUNTS:
                reported.pop(name, None)
            return
        # Only what differs: a heartbeat that says nothing shall not write to `agents`.
        known = {name: getattr(agent, name) for name in counted} | agent.reports
        agent.reports |= {name: count for name, count in counted.items() if count != known[name]}

    def _register(self, entry: Entry, message: Register) -> None:
        received_at, position = entry.arrival(self.facts.now)
        agent = self.agents.get(message.session_id)
        if message.id in self.facts.applied or (agent is not None and position <= agent.lifecycle_entry):
            return  # a replay, or overtaken by a newer registration or end
        if message.parent_id is not None and message.parent_id not in self.agents:
            detail = f"no session {message.parent_id} is registered that could be the parent"
            self.reject(entry, Reason.UNKNOWN_PARENT, detail, message, awaits=message.parent_id)
            return
        promise = _promise(message)
        if agent is None:
            agent = self._new_agent(message, promise, received_at, position)
        elif agent.ended_at is not None:
            agent.registered_at, agent.ended_at = received_at, None
            agent.reported = (received_at, position)
            reported = {"reported_at": received_at, "reported_entry": position}
            agent.changed_at = None
            agent.set(ended_at=None, exit_status=None, error=None, changed_at=None, **reported)
            self._change_state(agent, State.PENDING, received_at)
        agent.agent_name, agent.promise, agent.parallel = message.agent_name, promise, message.parallel
        agent.project = message.project or agent.project
        agent.unjudged_at = None
        agent.lifecycle_entry = position
        agent.deadline_at = self._deadline(promise, agent.since)
        agent.seen = agent.promised = True
        agent.set(**_settings(message, position))
        promised = message.model_dump(
            mode="json",
            exclude_none=True,
            include=_TOLD,
        )
        self._event(EventType.REGISTERED, received_at, agent, message_id=message.id, detail=promised)
        if not message.parallel:
            self._take_name(agent, received_at)

    def _new_agent(self, message: Register, promise: Promise, received_at: int, position: int) -> AgentRecord:
        agent = AgentRecord(
            session_id=message.session_id,
            agent_name=message.agent_name,
            promise=promise,
            parallel=message.parallel,
            registered_at=received_at,
            ended_at=None,
            lifecycle_entry=position,
            reported=None,
            state=State.PENDING,
            state_changed_at=received_at,
            last_seen_at=None,
            deadline_at=received_at,
            resumed_at=None,
            settings={"ended_at": None},
            is_new=True,
        )
        self.agents[message.session_id] = agent
        return agent

    def _take_name(self, agent: AgentRecord, received_at: int) -> None:
        """Leave one live session to a name: the one that was registered last."""
        for other in list(self.agents.values()):
            same = other.agent_name == agent.agent_name and other is not agent
            if not same or other.ended_at is not None or other.parallel:
                continue
            older, newer = sorted((other, agent), key=lambda record: record.lifecycle_entry)
            detail = {"superseded_by": str(newer.session_id)}
            self._end(older, received_at, newer.lifecycle_entry, detail)

    def _deregister(self, entry: Entry, message: Deregister) -> None:
        received_at, position = entry.arrival(self.facts.now)
        agent = self.agents.get(message.session_id)
        if agent is None:
            detail = f"no session {message.session_id} is registered"
            self.reject(entry, Reason.UNKNOWN_SESSION, detail, message, awaits=message.session_id)
            return
        if message.id in self.facts.applied:
            return  # a replay
        if position <= agent.lifecycle_entry:
            if agent.ended_at is None and received_at > agent.registered_at:
                self._end_overtaken(agent, message, received_at)
            return  # else a replay: the registration that came after it has opened the session anew
        if agent.ended_at is not None:
            # It ended before, but a registration between the two that comes late must open it for nobody.
            agent.lifecycle_entry = position
            agent.set(lifecycle_entry=position)
            return
        said: Row = {"error": message.error, "exit_status": message.exit_status}
        said = {name: value for name, value in said.items() if value is not None}
        agent.set(**said)
        self._end(agent, received_at, position, said, message_id=message.id)

    def _end_overtaken(self, agent: AgentRecord, message: Deregister, ended_at: int) -> None:
        """Let a session end before the registration that overtook the end, and that opened it anew.

        What was missed before the end counts no longer.
        """
        detail = {"lived_seconds": (ended_at - agent.registered_at) / 1000}
        self._event(EventType.DEREGISTERED, ended_at, agent, message_id=message.id, detail=detail)
        agent.registered_at = place_milliseconds(agent.lifecycle_entry)
        agent.seen = agent.promised = True
        if agent.last_seen_at is None or agent.last_seen_at <= agent.registered_at:
            self._change_state(agent, State.PENDING, agent.registered_at)
        agent.deadline_at = self._deadline(agent.promise, agent.since)

    def _end(
        self, agent: AgentRecord, ended_at: int, position: int, detail: Row, message_id: UUID | None = None
    ) -> None:
        agent.ended_at, agent.lifecycle_entry = ended_at, position
        agent.stuck_at = agent.flapping_at = agent.unjudged_at = None
        agent.set(ended_at=ended_at, lifecycle_entry=position, stuck_at=None, flapping_at=None, unjudged_at=None)
        if agent.state is State.PAUSED:
            agent.set(paused_at=None, paused_until=None, pause_reason=None)
        self._change_state(agent, State.ENDED, ended_at)
        self.idle_tasks_of.add(agent.agent_name)
        detail = {"lived_seconds": (ended_at - agent.registered_at) / 1000, **detail}
        self._event(EventType.DEREGISTERED, ended_at, agent, message_id=message_id, detail=detail)

    def _change_state(self, record: LivenessRecord, state: State, changed_at: int) -> None:
        record.state, record.state_changed_at, record.seen = state, changed_at, True

    def _deadline(self, promise: Promise, since: int) -> int:
        return deadline_of(promise, since, self.facts.missed_limit, self.facts.outages)

    def _event(  # noqa: PLR0913 - one argument for each column
        self,
        kind: EventType,
        occurred_at: int,
        agent: AgentRecord,
        *,
        message_id: UUID | None = None,
        text: str | None = None,
        detail: Row | None = None,
    ) -> None:
        self.events.append(
            {
                "type": kind.value,
                "occurred_at": occurred_at,
                "session_id": agent.session_id,
                "agent_name": agent.agent_name,
                "message_id": message_id,
                "text": text,
                "detail": detail,
            }
        )


def is_plain(message: Register | Heartbeat | Deregister, record: LivenessRecord, oldest: int) -> bool:
    """Return whether a message changes nothing but `liveness`: no name, no report and no order of messages matters.

    That is a heartbeat that says nothing and asks for no answer, of a session that is pending, ok or paused and was
    opened before it. `oldest` is a moment before which no message of the batch was sent.
    """
    return (
        record.registered_at < oldest
        and isinstance(message, Heartbeat)
        and _MORE_THAN_A_SIGN.isdisjoint(message.model_fields_set)
        and record.state in _UNTROUBLED
    )


class Understood(NamedTuple):
    """What entries hold."""

    messages: list[tuple[Entry, Register | Heartbeat | Deregister]]
    failures: list[tuple[Entry, InvalidMessage]]
    """Those that hold no message, and what is wrong with them."""


def own_ids(wire: bytes) -> tuple[UUID, UUID] | None:
    """Return the id and the session of the message that some bytes are; None if they don't name both.

    The bytes aren't parsed, which may be what kills a process: our senders write both before anything that could hold
    another. Who wrote them for something else may have put the ids of any message there.
    """
    found = _OWN_ID.search(wire), _OWN_SESSION.search(wire)
    message_id, session_id = (match and UUID(match[1].decode()) for match in found)
    return (message_id, session_id) if message_id and session_id else None


def understand(entries: Iterable[Entry]) -> Understood:
    """Return what entries hold."""
    understood = Understood([], [])
    for entry in entries:
        try:
            understood.messages.append((entry, parse_message(entry.wire)))
        except InvalidMessage as error:
            understood.failures.append((entry, error))
    return understood


def _promise(message: Register) -> Promise:
    grace = message.grace_seconds
    return Promise(
        interval_seconds=message.interval_seconds,
        schedule=message.schedule,
        time_zone=(message.time_zone or "UTC") if message.schedule else None,
        grace_seconds=default_grace_seconds(message.interval_seconds) if grace is None else grace,
        missed_limit=message.missed_intervals,
    )


def _settings(message: Register, position: int) -> Row:
    """Return the columns of `agents` that a registration sets; what it may leave out is kept if it does."""
    settings = {
        "agent_name": message.agent_name,
        "parallel": message.parallel,
        "lifecycle_entry": position,
        "stuck_after": message.stuck_after,
        "unjudged_at": None,
    }
    optional = {
        "project": message.project,
        "parent_id": message.parent_id,
        "metadata": message.metadata,
        "current_work": message.work,
    }
    return settings | {name: value for name, value in optional.items() if value is not None}
