"""What a batch knows of sessions, as SQL has it and as the batch leaves it, and by what it is judged.

Every moment here is an integer of milliseconds since 1970, as in the ids of the stream: making datetimes took a third
of a batch's time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from fleetbeat_worker.rules.liveness import Promise, State, silent_since
from fleetbeat_worker.store.tasks import TaskCounts

Row = dict[str, Any]

REPORTED = ("progress", "work_item_id", "status", "summary", "error", "open_tasks", "stale_tasks", "metadata")
"""What a heartbeat may say of its agent; what it leaves out stays as it was."""

SAID_AT = {"current_work": "work_said_at", "metadata": "metadata_said_at", "error": "error_said_at"}
"""What registrations and ends say of their agent, too, each with the column that has when: the latest word counts."""

TASK_COUNTS = ("open_tasks", "stale_tasks")
"""Of these, what a heartbeat leaves out is counted, if its agent has tasks."""

HEARTBEAT_COLUMNS = ("id", "session_id", "received_at", "seen_at", "sent_at", *REPORTED)
"""What a row of `heartbeats` holds, in this order."""

STRAY_COLUMNS = ("id", "received_at")
"""What a row of `stray_heartbeats` holds, in this order."""


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
    reported: tuple[int, int] | None
    """`seen_at` and position of the newest heartbeat that said anything."""
    open_tasks: int | None = None
    stale_tasks: int | None = None
    project: str | None = None
    said_at: dict[str, int | None] = field(default_factory=dict)
    """When registrations and the end last said what heartbeats say, too, by the columns of `SAID_AT`."""
    doing: Row = field(default_factory=dict)
    """What it last said of what it does (`DOING`)."""
    changed_at: int | None = None
    stuck_at: int | None = None
    flapping_at: int | None = None
    incident_id: int | None = None
    unjudged_at: int | None = None
    settings: Row = field(default_factory=dict)
    """Columns of `agents` that a change of the session, or of its state, sets."""
    reports: Row = field(default_factory=dict)
    """Columns of `agents` that heartbeats changed."""
    is_new: bool = False
    promised: bool = False
    """Whether a registration changed what `liveness` has of it."""

    def said_since(self, received_at: int) -> set[str]:
        """Find what registrations and the end said later than a heartbeat that was received then.

        Of the same moment a heartbeat comes after the registration, and before the end.
        """
        return {
            name
            for name, at in self.said_at.items()
            if at is not None and (received_at < at or received_at == at == self.ended_at)
        }

    def set(self, **settings: Any) -> None:  # noqa: ANN401 - columns have many types
        """Set columns of `agents`."""
        self.settings |= settings

    def say(self, said: Mapping[str, Any], at: int) -> None:
        """Set columns of `agents` to what a registration or an end says; what is None it doesn't say."""
        for name, value in said.items():
            if value is not None:
                self.settings[name] = value
                if name in SAID_AT:
                    self.said_at[name] = self.settings[SAID_AT[name]] = at


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
    tasks: Mapping[str, TaskCounts] = field(default_factory=dict)
    """How much work agents have, by name; one that never had a task is absent."""
    stored: set[UUID] = field(default_factory=set)
    """Of registrations and ends, and of heartbeats of ended sessions, those that are in SQL already."""
