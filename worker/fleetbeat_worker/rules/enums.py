"""Enumerations that SQL, notifications and commands share."""

from __future__ import annotations

from enum import StrEnum


class EventType(StrEnum):
    """What changed."""

    REGISTERED = "registered"
    """A session was registered, or registered again."""
    HEARTBEAT = "heartbeat"
    """A heartbeat brought progress text."""
    DEGRADED = "degraded"
    """An agent missed as many intervals as the limit allows."""
    RECOVERED = "recovered"
    """A degraded agent was heard again."""
    DEREGISTERED = "deregistered"
    """A session ended: its agent said goodbye, or another session took its name."""
    STUCK = "stuck"
    """An agent beats, but what it does hasn't changed for as many intervals as it may take."""
    UNSTUCK = "unstuck"
    """A stuck agent does something else."""
    FLAPPING = "flapping"
    """An agent changes its state so often that single changes are told no longer."""
    CALM = "calm"
    """A flapping agent has kept its state for long enough."""
    PAUSED = "paused"
    """An agent is silenced on purpose."""
    RESUMED = "resumed"
    """A pause is over; the agent's clock starts anew."""
    MAINTENANCE = "maintenance"
    """A maintenance window began: nobody is flagged."""
    MAINTENANCE_OVER = "maintenance_over"
    """A maintenance window ended; every agent's clock starts anew."""
    INCIDENT = "incident"
    """More than half of the live agents went silent at once."""
    INCIDENT_OVER = "incident_over"
    """Those that went silent together are back, or most of them."""
    UNJUDGED = "unjudged"
    """An agent's row can't be judged; it is left out until it changes."""
    OUTAGE = "outage"
    """Nobody watched for a time."""
    INBOX_TRIMMED = "inbox_trimmed"
    """Messages were removed from the inbox before they were in SQL: an agent trims it with its XADD."""
    INBOX_LOST = "inbox_lost"
    """Redis came back without the inbox, or with an older one."""


LIFECYCLE = frozenset({EventType.REGISTERED, EventType.DEREGISTERED})
"""What opens and ends sessions."""


class TaskState(StrEnum):
    """How far a task is."""

    OPEN = "open"
    """To be done."""
    IN_PROGRESS = "in_progress"
    """A session works on it; when the session ends it is open again."""
    DONE = "done"
    """Finished."""


class NoticeKind(StrEnum):
    """What people are told."""

    DEGRADED = "degraded"
    RECOVERED = "recovered"
    REMINDER = "reminder"
    """An agent is degraded still."""
    STUCK = "stuck"
    UNSTUCK = "unstuck"
    FLAPPING = "flapping"
    CALM = "calm"
    INCIDENT = "incident"
    INCIDENT_OVER = "incident_over"
    OUTAGE = "outage"
    UNJUDGED = "unjudged"


class NoticeState(StrEnum):
    """How far a notification is."""

    WAITING = "waiting"
    """To be sent, now or after a failure."""
    SENT = "sent"
    """Everybody that it is for has it."""
    DEAD = "dead"
    """It couldn't be sent for a day."""
    UNROUTED = "unrouted"
    """It is for nobody: no URL is set for it."""
