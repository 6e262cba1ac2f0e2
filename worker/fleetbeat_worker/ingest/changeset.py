"""Changeset: the sessions that a transaction changes, and the rows, notices and answers that it will write."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from fleetbeat_shared.messages import MAX_MESSAGE_BYTES, Heartbeat, Reason, Reply
from fleetbeat_worker.broker.entries import Entry
from fleetbeat_worker.ingest.session_state import AgentRecord, Facts, LivenessRecord, Row
from fleetbeat_worker.notifications.notice import Notice, agent_notice, promise_facts, silence_facts
from fleetbeat_worker.rules.deadlines import deadline_of
from fleetbeat_worker.rules.enums import EventType, NoticeKind
from fleetbeat_worker.rules.liveness import Promise, State
from fleetbeat_worker.rules.spans import from_milliseconds


@dataclass(slots=True)
class Changeset:
    """The changes of one transaction, worked out in memory before they are written."""

    facts: Facts
    agents: dict[UUID, AgentRecord] = field(default_factory=dict)
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

    def reject(self, entry: Entry, reason: Reason, detail: str) -> None:
        """Set a message aside, and tell the sender if it waits."""
        message = entry.message
        self.rejected.append(
            {
                "entry_id": entry.key,
                "received_at": entry.received_at,
                "reason": reason.value,
                "detail": detail,
                "session_id": message.session_id if message else None,
                "rejected_at": self.facts.now,
                "raw": entry.wire[:MAX_MESSAGE_BYTES],
            }
        )
        if isinstance(message, Heartbeat) and message.reply:
            self.replies.append((message.id, Reply(ok=False, code=reason.value, session_id=message.session_id)))

    def reject_undecoded(self, entry: Entry) -> None:
        """Set an entry aside that holds no message."""
        if entry.error is not None:
            self.reject(entry, Reason(entry.error.reason), entry.error.detail)

    def notify(self, kind: NoticeKind, at: int, agent: AgentRecord, detail: Row) -> None:
        """Add a notice of an agent's change."""
        facts = {**detail, **promise_facts(agent.promise, self.facts.missed_limit)}
        self.notices.append(agent_notice(kind, agent, from_milliseconds(at), facts))

    def silence(self, agent: AgentRecord, heard_at: int | None, until: int) -> Row:
        """Compose the facts of a silence that is over.

        It is counted from when the agent was last heard, also where its time counted anew from the end of a pause.
        """
        since = min(until, max(agent.registered_at, heard_at or 0))
        last = [None if at is None else from_milliseconds(at) for at in (heard_at, agent.resumed_at)]
        facts = silence_facts(from_milliseconds(agent.registered_at), *last)
        return {**facts, "seen_at": from_milliseconds(until).isoformat(), "silent_seconds": (until - since) / 1000}

    def change_state(self, record: LivenessRecord, state: State, changed_at: int) -> None:
        """Change a session's state."""
        record.state, record.state_changed_at, record.seen = state, changed_at, True

    def deadline(self, promise: Promise, since: int) -> int:
        """Work out the deadline of a silence that counts from a moment. Raises `UNJUDGEABLE`."""
        return deadline_of(promise, since, self.facts.missed_limit, self.facts.outages)

    def record(  # noqa: PLR0913 - one argument for each column
        self,
        kind: EventType,
        occurred_at: int,
        agent: AgentRecord,
        *,
        message_id: UUID | None = None,
        text: str | None = None,
        detail: Row | None = None,
    ) -> None:
        """Add an event of an agent."""
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
