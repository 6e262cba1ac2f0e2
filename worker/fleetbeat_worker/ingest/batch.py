"""Batch: what the heartbeats of one transaction change, worked out in memory.

It knows the sessions that the heartbeats name, as SQL has them (`session_state`), and gathers in a `changeset` what
comes of them. It touches no database and no clock: `queries` reads what it needs and writes what it found.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from fleetbeat_shared.messages import Heartbeat, Reason, Reply
from fleetbeat_worker.broker.entries import Entry
from fleetbeat_worker.ingest.changeset import Changeset
from fleetbeat_worker.ingest.session_state import (
    REPORTED,
    TASK_COUNTS,
    AgentRecord,
    LivenessRecord,
    Row,
)
from fleetbeat_worker.rules.anomalies import DOING
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


@dataclass(frozen=True, slots=True)
class Batch:
    """Applies the heartbeats of one transaction, in the order of the stream."""

    changes: Changeset

    def apply(self, entry: Entry, message: Heartbeat) -> None:
        """Apply one heartbeat. One that arrived before its session's end is history, a later one is set aside."""
        changes = self.changes
        record = changes.plain.get(message.session_id) or changes.agents.get(message.session_id)
        if record is None:
            changes.reject(entry, Reason.UNKNOWN_SESSION, f"no session {message.session_id} is registered")
            return
        agent = record if isinstance(record, AgentRecord) else None
        received_at = seen_at = entry.received_at
        ended_at = None if agent is None else agent.ended_at
        # One that is stored was in time: an id that is ahead of the clock seems later when it is delivered again.
        if agent and ended_at is not None and received_at > ended_at and message.id not in changes.facts.stored:
            detail = f"the session of {agent.agent_name} ended at {from_milliseconds(ended_at).isoformat()}"
            changes.reject(entry, Reason.SESSION_ENDED, detail)
            return
        if message.buffered_seconds:
            seen_at -= round(message.buffered_seconds * 1000)
        said = _NOTHING_SAID if agent is None else _said_by(message)
        counted = self._count_tasks(agent, message) if agent is not None and changes.facts.tasks else {}
        stored = _said_by(message.model_copy(update=counted)) if counted else said
        sent_at = to_milliseconds(message.sent_at)
        changes.heartbeats.append((message.id, message.session_id, received_at, seen_at, sent_at, *stored))
        if abs((message.id.int >> 80) - received_at) >= STRAY_MILLISECONDS:
            changes.strays.append((message.id, received_at))
        if agent is None:
            self._see(record, seen_at)
            return
        if message.progress:
            changes.record(EventType.HEARTBEAT, seen_at, agent, message_id=message.id, text=message.progress)
        # What arrived after the session was opened anew says something of it now, however long it had waited.
        order = (max(seen_at, agent.registered_at) if received_at >= agent.registered_at else seen_at, entry.position)
        self._see(agent, seen_at, counts=agent.reported is None or order >= agent.reported)
        if said != _NOTHING_SAID or agent.agent_name in changes.facts.tasks:
            words = dict(zip(REPORTED, said, strict=True))
            self._report(agent, order, words, counted, agent.said_since(received_at))
        if message.reply:
            answer = Reply(
                ok=True,
                session_id=message.session_id,
                agent_name=agent.agent_name,
                timestamp=from_milliseconds(seen_at),
                progress=message.progress,
            )
            changes.replies.append((message.id, answer))

    def _see(self, record: LivenessRecord, seen_at: int, *, counts: bool = True) -> None:
        """Move `last_seen_at` forward, and if it counts what hangs on it; an older heartbeat moves nothing."""
        if record.last_seen_at is not None and seen_at <= record.last_seen_at:
            return
        heard_at, record.last_seen_at = record.last_seen_at, seen_at
        record.seen = True
        if record.state is State.ENDED or not counts:
            return
        try:
            record.deadline_at = self.changes.deadline(record.promise, record.since)
        except UNJUDGEABLE:
            return  # it counts as a sign; the sweep that finds the old deadline passed sets the agent aside
        if isinstance(record, AgentRecord) and record.unjudged_at is not None:
            record.unjudged_at = None
            record.set(unjudged_at=None)
        if record.state in _SETTLED:
            return
        # A heartbeat that waited somewhere for long fills history, and revives nobody.
        watermark = self.changes.facts.watermark
        if watermark is not None and self.changes.deadline(record.promise, seen_at) <= watermark:
            return
        if isinstance(record, AgentRecord) and record.state is State.DEGRADED:
            self._recover(record, heard_at, seen_at)
        self.changes.change_state(record, State.OK, seen_at)

    def _recover(self, agent: AgentRecord, heard_at: int | None, seen_at: int) -> None:
        """Record that a degraded agent is heard again, and tell it unless its silence wasn't told by itself either."""
        silence = self.changes.silence(agent, heard_at, seen_at)
        # A heartbeat that waited brings it back as of before: who asks how it was then must know that nobody knew.
        stored_at = from_milliseconds(self.changes.facts.now).isoformat()
        detail = {"silent_seconds": silence["silent_seconds"], "stored_at": stored_at}
        self.changes.record(EventType.RECOVERED, seen_at, agent, detail=detail)
        if agent.flapping_at is None and agent.incident_id is None:
            self.changes.notify(NoticeKind.RECOVERED, seen_at, agent, silence)

    def flap(self, agent: AgentRecord) -> None:
        """Tell that an agent flaps, instead of that it recovered: it changes its state too often for more."""
        recovery = (agent.session_id, NoticeKind.RECOVERED)
        changes = self.changes
        changes.notices = [notice for notice in changes.notices if (notice.session_id, notice.kind) != recovery]
        agent.flapping_at = changes.facts.now
        agent.set(flapping_at=agent.flapping_at)
        detail = {"state": agent.state.value}
        changes.record(EventType.FLAPPING, agent.flapping_at, agent, detail=detail)
        changes.notify(NoticeKind.FLAPPING, agent.flapping_at, agent, detail)

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
        self.changes.record(EventType.UNSTUCK, seen_at, agent, detail=detail)
        self.changes.notify(NoticeKind.UNSTUCK, seen_at, agent, {**detail, **agent.doing})

    def _count_tasks(self, agent: AgentRecord, message: Heartbeat) -> Row:
        """Return the counts of tasks that a heartbeat left out, as they are now."""
        tasks = self.changes.facts.tasks.get(agent.agent_name)
        counts = {} if tasks is None else {"open_tasks": tasks.open, "stale_tasks": tasks.stale}
        return {name: count for name, count in counts.items() if getattr(message, name) is None}

    def _report(
        self, agent: AgentRecord, order: tuple[int, int], said: Row, counted: Row, overruled: Collection[str]
    ) -> None:
        """Take over what a heartbeat says of its agent, unless a newer one has spoken.

        `overruled`: the columns of which a later registration, or the end, has spoken.
        """
        since = changed_at(agent, order, said)
        if since is not None:
            self._do_something_else(agent, order[0], since)
        if agent.reported is not None and order < agent.reported:
            return
        reported = {name: value for name, value in said.items() if value is not None}
        if not reported.get("progress"):
            reported.pop("progress", None)
        if agent.agent_name in self.changes.facts.tasks:
            self._report_counts(agent, order[0], reported, counted)
        if "progress" in reported:
            reported["current_work"] = reported["progress"]
        for name in overruled:
            reported.pop(name, None)
        if not reported:
            return
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


def is_plain(message: Heartbeat, record: LivenessRecord, oldest: int) -> bool:
    """Tell whether a heartbeat changes nothing but `liveness`: no name, no report and no order of messages matters.

    It says nothing and asks for no answer, and its session is pending, ok or paused and was opened before it. `oldest`
    is a moment before which no message of the batch was sent.
    """
    return (
        record.registered_at < oldest
        and _MORE_THAN_A_SIGN.isdisjoint(message.model_fields_set)
        and record.state in _UNTROUBLED
    )


def changed_at(agent: AgentRecord, order: tuple[int, int], said: Mapping[str, Any]) -> int | None:
    """Take over what a heartbeat says, and return when what the agent does changed by it; None if it says nothing new.

    `order` is the heartbeat's `seen_at` and place. One that comes after newer ones, and says something else, means that
    the agent did something else in between: it came back to what it does now no later than at the newest of them, if
    that one spoke of it. (Which heartbeat last spoke of which word isn't kept.)
    """
    given = {name: said[name] for name in DOING if said.get(name) is not None}
    if not given.get("progress"):
        given.pop("progress", None)  # an empty one leaves what was there
    differs = any(agent.doing.get(name) != value for name, value in given.items())
    if agent.reported is not None and order < agent.reported:
        is_news = differs and agent.changed_at is not None and order[0] > agent.changed_at
        return agent.reported[0] if is_news else None
    agent.doing = {**agent.doing, **given}
    return order[0] if differs or (given and agent.changed_at is None) else None
