"""What a batch of messages changes, worked out in memory.

A batch knows the agents that its messages name, as SQL has them (`records`), and applies the messages in the order of
the stream: heartbeats here, what opens and ends sessions in `lifecycle`. What comes of it stands in the `ledger`. It
touches no database and no clock: `store.batches` reads what it needs and writes what it found.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import attrgetter

from fleetbeat_shared.messages import Deregister, Heartbeat, Reason, Register, Reply
from fleetbeat_worker.broker.inbox import Entry
from fleetbeat_worker.ingest.doing import changed_at
from fleetbeat_worker.ingest.lifecycle import Lifecycle
from fleetbeat_worker.ingest.session_state import REPORTED, TASK_COUNTS, AgentRecord, LivenessRecord, Row
from fleetbeat_worker.rules.enums import EventType, NoticeKind
from fleetbeat_worker.rules.liveness import UNJUDGEABLE, State
from fleetbeat_worker.rules.spans import from_milliseconds, to_milliseconds

STRAY_MILLISECONDS = 86_400_000
"""How far an id's time may be from the receipt before the heartbeat counts as a stray: partitions have a day each."""

_MORE_THAN_A_SIGN = frozenset({*REPORTED, "reply"})
_UNTROUBLED = frozenset({State.PENDING, State.OK, State.PAUSED})
_SETTLED = frozenset({State.OK, State.PAUSED})
"""What a heartbeat leaves as it is: only the end of a pause, or of the session, ends a pause."""

_said_by = attrgetter(*REPORTED)
_NOTHING_SAID = (None,) * len(REPORTED)


@dataclass(slots=True)
class Batch(Lifecycle):
    """Applies all messages of one transaction."""

    def apply(self, entry: Entry, message: Register | Heartbeat | Deregister) -> None:
        """Apply one message."""
        match message:
            case Heartbeat():
                self._beat(entry, message)
            case Register():
                self._register(entry, message)
            case Deregister():
                self._deregister(entry, message)

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
        # What arrived after the session was opened anew says something of it now, however long it had waited.
        order = (max(seen_at, agent.registered_at) if received_at >= agent.registered_at else seen_at, position)
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
        heard_at, record.last_seen_at = record.last_seen_at, seen_at
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
            self._recover(record, heard_at, seen_at)
        self._change_state(record, State.OK, seen_at)

    def _recover(self, agent: AgentRecord, heard_at: int | None, seen_at: int) -> None:
        """Record that a degraded agent is heard again, and tell it unless its silence wasn't told by itself either."""
        silence = self._silence(agent, heard_at, seen_at)
        # A heartbeat that waited brings it back as of before: who asks how it was then must know that nobody knew.
        stored_at = from_milliseconds(self.facts.now).isoformat()
        detail = {"silent_seconds": silence["silent_seconds"], "stored_at": stored_at}
        self._event(EventType.RECOVERED, seen_at, agent, detail=detail)
        if agent.flapping_at is None and agent.incident_id is None:
            self._tell(NoticeKind.RECOVERED, seen_at, agent, silence)

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
