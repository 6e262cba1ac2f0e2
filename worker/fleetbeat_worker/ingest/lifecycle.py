"""How registrations and goodbyes change sessions: they open, go on with other promises, lose their names, and end."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from uuid import UUID

from fleetbeat_shared.messages import Deregister, Reason, Register
from fleetbeat_worker.broker.inbox import Entry, place_milliseconds
from fleetbeat_worker.ingest.changeset import Ledger
from fleetbeat_worker.ingest.session_state import AgentRecord, LifecycleEvent, Row
from fleetbeat_worker.notifications.notice import DEREGISTERED, RESTARTED
from fleetbeat_worker.rules.enums import LIFECYCLE, EventType, NoticeKind
from fleetbeat_worker.rules.liveness import UNJUDGEABLE, Promise, State, default_grace_seconds

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

_UNTROUBLED = frozenset({State.PENDING, State.OK})


@dataclass(slots=True)
class Lifecycle(Ledger):
    """Applies what opens and ends sessions."""

    def _register(self, entry: Entry, message: Register) -> None:
        received_at, position = entry.arrival(self.facts.now)
        agent = self.agents.get(message.session_id)
        if message.id in self.facts.applied:
            return  # a replay
        if agent is not None and position <= agent.lifecycle_entry:
            self._catch_up(agent, EventType.REGISTERED, received_at, message.id, _promised(message))
            return
        if message.parent_id is not None and message.parent_id not in self.agents:
            detail = f"no session {message.parent_id} is registered that could be the parent"
            self.reject(entry, Reason.UNKNOWN_PARENT, detail, message, awaits=message.parent_id)
            return
        promise = _promise(message)
        if agent is None:
            agent = self._new_agent(message, promise, received_at, position)
        elif agent.ended_at is not None:
            agent.ended_at = agent.changed_at = None
            agent.set(ended_at=None, exit_status=None, error=None, changed_at=None)
            self._change_state(agent, State.PENDING, received_at)
            self._open_since(agent, received_at)
        agent.agent_name, agent.promise, agent.parallel = message.agent_name, promise, message.parallel
        agent.project = message.project or agent.project
        agent.unjudged_at = None
        agent.lifecycle_entry = position
        agent.deadline_at = self._deadline(promise, agent.since)
        agent.seen = agent.promised = True
        agent.set(**_settings(message, position))
        self._event(EventType.REGISTERED, received_at, agent, message_id=message.id, detail=_promised(message))
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
            ended_at = received_at
            if older is agent:  # it comes late: it had ended when the other one was registered
                again_at = min(place_milliseconds(newer.lifecycle_entry), self.facts.now)
                ended_at = newer.registered_at if newer.registered_at >= received_at else again_at
            self._end(older, ended_at, newer.lifecycle_entry, detail)

    def _deregister(self, entry: Entry, message: Deregister) -> None:
        received_at, position = entry.arrival(self.facts.now)
        agent = self.agents.get(message.session_id)
        if agent is None:
            detail = f"no session {message.session_id} is registered"
            self.reject(entry, Reason.UNKNOWN_SESSION, detail, message, awaits=message.session_id)
            return
        if message.id in self.facts.applied:
            return  # a replay
        said: Row = {"error": message.error, "exit_status": message.exit_status}
        said = {name: value for name, value in said.items() if value is not None}
        if position <= agent.lifecycle_entry:
            self._catch_up(agent, EventType.DEREGISTERED, received_at, message.id, said)
            return
        if agent.ended_at is not None:
            # It ended before, but a registration between the two may come late, and then this one ended it.
            agent.lifecycle_entry = position
            agent.set(lifecycle_entry=position)
            self._event(EventType.DEREGISTERED, received_at, agent, message_id=message.id, detail=said)
            return
        agent.set(**said)
        self._end(agent, received_at, position, said, message_id=message.id)

    def _catch_up(self, agent: AgentRecord, kind: EventType, occurred_at: int, message_id: UUID, detail: Row) -> None:
        """Take up a registration or an end that a newer one overtook: what it said is history.

        It tells since when the session is open, though, or was until its end. Whatever is taken up twice changes
        nothing the second time.
        """
        told = [*self.facts.lifecycles.get(agent.session_id, ()), *self._lifecycle_of(agent)]
        if any(event.message_id == message_id and event.at == occurred_at for event in told):
            return  # a replay
        if all(event.message_id != message_id for event in told):
            self._event(kind, occurred_at, agent, message_id=message_id, detail=detail)
        told.append(LifecycleEvent(kind, occurred_at, message_id, detail))
        # What no event tells any more.
        _add(told, EventType.REGISTERED, agent.registered_at)
        newest = min(place_milliseconds(agent.lifecycle_entry), self.facts.now)
        if agent.ended_at is not None:
            _add(told, EventType.DEREGISTERED, agent.ended_at)
            self._end_again(agent, *retrace(told))
            return
        _add(told, EventType.REGISTERED, newest)
        opened_at, end = retrace(told)
        if end is not None:  # of two moments that are the same nobody knows which was first
            opened_at = newest
        if opened_at != agent.registered_at or kind is EventType.DEREGISTERED:
            self._open_since(agent, opened_at)
            with suppress(*UNJUDGEABLE):  # then the sweep that finds the old deadline passed sets the agent aside
                agent.deadline_at = self._deadline(agent.promise, agent.since)

    def _end_again(self, agent: AgentRecord, opened_at: int, end: LifecycleEvent | None) -> None:
        """Let a session that has ended have had another life last than was known."""
        if end is None or (opened_at, end.at) == (agent.registered_at, agent.ended_at):
            return
        agent.registered_at, agent.ended_at = opened_at, end.at
        agent.seen = agent.promised = True
        said = {name: (end.detail or {}).get(name) for name in ("error", "exit_status")}
        agent.set(ended_at=end.at, **said)

    def _lifecycle_of(self, agent: AgentRecord) -> list[LifecycleEvent]:
        """Return the registrations and ends of a session that the batch has brought so far."""
        return [
            LifecycleEvent(event["type"], event["occurred_at"], event["message_id"], event["detail"])
            for event in self.events
            if event["session_id"] == agent.session_id and event["type"] in LIFECYCLE
        ]

    def _open_since(self, agent: AgentRecord, opened_at: int) -> None:
        """Let a session be open since a moment: what was said and missed before it counts no longer."""
        start, is_later = (opened_at, 0), opened_at > agent.registered_at
        if agent.reported is not None and agent.reported[0] == agent.registered_at:
            agent.reported = start  # nothing was said since it was opened
        elif opened_at >= agent.registered_at:
            agent.reported = max(agent.reported or start, start)
        if agent.reported is not None:
            agent.set(reported_at=agent.reported[0], reported_entry=agent.reported[1])
        if agent.changed_at is not None and agent.changed_at < opened_at:
            agent.changed_at = agent.stuck_at = None
            agent.set(changed_at=None, stuck_at=None)
        if is_later and agent.flapping_at is not None and agent.flapping_at < opened_at:
            agent.flapping_at = None
            agent.set(flapping_at=None)
        agent.registered_at = opened_at
        agent.seen = agent.promised = True
        was_seen = agent.last_seen_at is not None and agent.last_seen_at >= opened_at
        state = State.OK if was_seen else State.PENDING
        if agent.state is State.PAUSED and agent.state_changed_at < opened_at:  # the pause ended with its session
            agent.set(paused_at=None, paused_until=None, pause_reason=None)
            self._change_state(agent, state, opened_at)
        elif agent.state in _UNTROUBLED or (agent.state is State.DEGRADED and is_later and not was_seen):
            self._change_state(agent, state, opened_at)

    def _end(
        self, agent: AgentRecord, ended_at: int, position: int, detail: Row, message_id: UUID | None = None
    ) -> None:
        self._tell_end(agent, ended_at, detail)
        agent.ended_at, agent.lifecycle_entry = ended_at, position
        agent.stuck_at = agent.flapping_at = agent.unjudged_at = None
        agent.set(ended_at=ended_at, lifecycle_entry=position, stuck_at=None, flapping_at=None, unjudged_at=None)
        if agent.state is State.PAUSED:
            agent.set(paused_at=None, paused_until=None, pause_reason=None)
        self._change_state(agent, State.ENDED, ended_at)
        self.idle_tasks_of.add(agent.agent_name)
        detail = {"lived_seconds": (ended_at - agent.registered_at) / 1000, **detail}
        self._event(EventType.DEREGISTERED, ended_at, agent, message_id=message_id, detail=detail)

    def _tell_end(self, agent: AgentRecord, ended_at: int, detail: Row) -> None:
        """Tell that a session has ended of which people were told that it was silent, or stuck.

        An agent that is restarted mostly has another session, and of this one they would hear nothing more.
        """
        end = RESTARTED if "superseded_by" in detail else DEREGISTERED
        how: Row = {"end": end, "exit_status": detail.get("exit_status")}
        if agent.state is State.DEGRADED and agent.incident_id is None:
            self._tell(NoticeKind.RECOVERED, ended_at, agent, how | self._silence(agent, agent.last_seen_at, ended_at))
        elif agent.state is State.OK and agent.stuck_at is not None:
            self._tell(NoticeKind.UNSTUCK, ended_at, agent, how)


def retrace(told: Iterable[LifecycleEvent]) -> tuple[int, LifecycleEvent | None]:
    """Return when a session was last opened, and what ended it then, if anything did; of what is told in any order.

    Of the same millisecond the messages' ids tell the order: they were made one after the other.
    """
    opened_at, end, is_open = 0, None, False
    for event in sorted(told, key=lambda event: (event.at, event.message_id is None, event.message_id)):
        if event.kind == EventType.REGISTERED and not is_open:
            opened_at, end, is_open = event.at, None, True
        elif event.kind == EventType.DEREGISTERED and is_open:
            end, is_open = event, False
    return opened_at, end


def _add(told: list[LifecycleEvent], kind: EventType, at: int) -> None:
    if all((event.kind, event.at) != (kind, at) for event in told):
        told.append(LifecycleEvent(kind, at, None, None))


def _promised(message: Register) -> Row:
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
