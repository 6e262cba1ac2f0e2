"""Lifecycle: how registrations and deregistrations change sessions, worked out in memory.

They open sessions, change what these promise, let them take names, and end them. They come in the order of the lane, so
each one finds what all before it have left.
"""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from fleetbeat_shared.messages import Deregister, Reason, Register
from fleetbeat_worker.broker.entries import Entry
from fleetbeat_worker.ingest.changeset import Changeset
from fleetbeat_worker.ingest.session_state import AgentRecord, Row
from fleetbeat_worker.notifications.notice import DEREGISTERED, RESTARTED
from fleetbeat_worker.rules.enums import EventType, NoticeKind
from fleetbeat_worker.rules.liveness import Promise, State, default_grace_seconds

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
    "error",
    "exit_status",
}
"""What the event of a registration or an end says of it."""


@dataclass(frozen=True, slots=True)
class Lifecycle:
    """Applies registrations and deregistrations."""

    changes: Changeset

    def apply(self, entry: Entry, message: Register | Deregister) -> None:
        """Apply one message, unless it was applied before: a sender may add one twice, and a worker may die."""
        if message.id in self.changes.facts.stored:
            return
        if isinstance(message, Register):
            self._register(entry, message)
        else:
            self._deregister(entry, message)

    def record_overtaken(self, entry: Entry, message: Register | Deregister) -> None:
        """Record a message that newer ones of its session overtook: it changes nothing any more."""
        if message.id not in self.changes.facts.stored:
            kind = EventType.REGISTERED if isinstance(message, Register) else EventType.DEREGISTERED
            agent = self.changes.agents[message.session_id]
            self._record(kind, entry.received_at, agent, message.id, _said(message))

    def _register(self, entry: Entry, message: Register) -> None:
        changes, at = self.changes, entry.received_at
        if message.parent_id is not None and message.parent_id not in changes.agents:
            detail = f"no session {message.parent_id} is registered that could be the parent"
            changes.reject(entry, Reason.UNKNOWN_PARENT, detail)
            return
        promise = _promise(message)
        agent = changes.agents.get(message.session_id)
        if agent is None:
            agent = self._new_agent(message, promise, at)
        elif agent.ended_at is not None:
            self._reopen(agent, at)
        agent.agent_name, agent.promise, agent.parallel = message.agent_name, promise, message.parallel
        agent.project = message.project or agent.project
        agent.unjudged_at = None
        agent.deadline_at = changes.deadline(promise, agent.since)
        agent.seen = agent.promised = True
        agent.set(agent_name=message.agent_name, parallel=message.parallel, unjudged_at=None)
        agent.set(stuck_after=message.stuck_after)  # what it promises is told whole; the rest is kept if it is left out
        agent.say({"current_work": message.work, "metadata": message.metadata}, at)
        agent.say({"project": message.project, "parent_id": message.parent_id}, at)
        self._record(EventType.REGISTERED, at, agent, message.id, _said(message))
        if not message.parallel:
            self._take_name(agent, at)

    def _new_agent(self, message: Register, promise: Promise, at: int) -> AgentRecord:
        agent = AgentRecord(
            session_id=message.session_id,
            agent_name=message.agent_name,
            promise=promise,
            parallel=message.parallel,
            registered_at=at,
            ended_at=None,
            reported=None,
            state=State.PENDING,
            state_changed_at=at,
            last_seen_at=None,
            deadline_at=at,
            resumed_at=None,
            settings={"ended_at": None},
            is_new=True,
        )
        self.changes.agents[message.session_id] = agent
        return agent

    def _reopen(self, agent: AgentRecord, at: int) -> None:
        """Open a session that has ended: what it said and missed before counts no longer."""
        agent.registered_at, agent.ended_at, agent.changed_at = at, None, None
        agent.reported = max(agent.reported or (at, 0), (at, 0))
        reported_at, reported_entry = agent.reported
        agent.set(ended_at=None, exit_status=None, error=None, changed_at=None)
        agent.set(reported_at=reported_at, reported_entry=reported_entry)
        self.changes.change_state(agent, State.PENDING, at)

    def _take_name(self, agent: AgentRecord, at: int) -> None:
        """End the live session that had the name: a name belongs to the one that was registered last."""
        for other in list(self.changes.agents.values()):
            same = other.agent_name == agent.agent_name and other is not agent
            if same and other.ended_at is None and not other.parallel:
                self._end(other, at, {"superseded_by": str(agent.session_id)})

    def _deregister(self, entry: Entry, message: Deregister) -> None:
        changes, at = self.changes, entry.received_at
        agent = changes.agents.get(message.session_id)
        if agent is None:
            changes.reject(entry, Reason.UNKNOWN_SESSION, f"no session {message.session_id} is registered")
            return
        said = _said(message)
        if agent.ended_at is not None:  # said twice; the event tells a copy of it
            self._record(EventType.DEREGISTERED, at, agent, message.id, said)
            return
        agent.say(said, at)
        self._end(agent, at, said, message.id)

    def _end(self, agent: AgentRecord, at: int, detail: Row, message_id: UUID | None = None) -> None:
        self._notify_end(agent, at, detail)
        agent.ended_at = at
        agent.stuck_at = agent.flapping_at = agent.unjudged_at = None
        agent.set(ended_at=at, stuck_at=None, flapping_at=None, unjudged_at=None)
        if agent.state is State.PAUSED:
            agent.set(paused_at=None, paused_until=None, pause_reason=None)
        self.changes.change_state(agent, State.ENDED, at)
        self.changes.idle_tasks_of.add(agent.agent_name)
        detail = {"lived_seconds": (at - agent.registered_at) / 1000, **detail}
        self._record(EventType.DEREGISTERED, at, agent, message_id, detail)

    def _notify_end(self, agent: AgentRecord, at: int, detail: Row) -> None:
        """Tell that a session has ended of which people were told that it was silent, or stuck.

        An agent that is restarted mostly has another session, and of this one they would hear nothing more.
        """
        end = RESTARTED if "superseded_by" in detail else DEREGISTERED
        how: Row = {"end": end, "exit_status": detail.get("exit_status")}
        if agent.state is State.DEGRADED and agent.incident_id is None:
            self.changes.notify(
                NoticeKind.RECOVERED, at, agent, how | self.changes.silence(agent, agent.last_seen_at, at)
            )
        elif agent.state is State.OK and agent.stuck_at is not None:
            self.changes.notify(NoticeKind.UNSTUCK, at, agent, how)

    def _record(self, kind: EventType, at: int, agent: AgentRecord, message_id: UUID | None, detail: Row) -> None:
        self.changes.record(kind, at, agent, message_id=message_id, detail=detail)
        if message_id is not None:
            self.changes.facts.stored.add(message_id)


def _said(message: Register | Deregister) -> Row:
    return message.model_dump(mode="json", exclude_none=True, include=_TOLD)


def _promise(message: Register) -> Promise:
    grace = message.grace_seconds
    return Promise(
        interval_seconds=message.interval_seconds,
        schedule=message.schedule,
        time_zone=(message.time_zone or "UTC") if message.schedule else None,
        grace_seconds=default_grace_seconds(message.interval_seconds) if grace is None else grace,
        missed_limit=message.missed_intervals,
    )
