"""Redis keys and related names: streams, consumer group, RQ queue."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from uuid import UUID

INBOX = "fleetbeat:inbox"
"""The Redis stream that agents add their heartbeats to."""

SESSIONS = "fleetbeat:sessions"
"""The lane: the Redis stream that agents add their registrations and deregistrations to. The workers apply it in its
order, and before the heartbeats that were added later."""

SESSIONS_IN_HAND = "fleetbeat:sessions-in-hand"
"""A hash: what a worker has in hand of the lane, so that it is known if it dies of it."""


def stream_of(kind: str) -> str:
    """Tell the stream that messages of a kind are added to."""
    return INBOX if kind == "heartbeat" else SESSIONS


FIELD = "m"
"""The one field of an entry of either stream: the message as JSON. Short, as every queued heartbeat carries it."""

GROUP = "fleetbeat"
"""The consumer group through which the workers read the inbox."""

ACCOUNT = "fleetbeat:account"
"""A hash: how many entries the workers took out of the inbox and the session lane, and more counts."""

QUEUE = "fleetbeat"
"""The RQ queue of the jobs `ingest`, `sweep`, `notify` and `prune`. One queue only: with several, RQ pops in a way that
loses a job when the worker dies."""

DISPATCHER_LOCK = "fleetbeat:dispatcher"
"""Held by the elected dispatcher."""

STORED = "fleetbeat:stored"
"""A hash: how many entries each worker took out of the inbox and the lane, by its name."""

PULSE = "fleetbeat:pulse"
"""When Redis last accepted a write of a pool, in milliseconds since 1970."""

PULSE_GAPS = "fleetbeat:pulse-gaps"
"""A list: recent gaps in the pulse, as `start:end`."""

PROBE = "fleetbeat:probe"
"""Written and removed before each sweep, to check that Redis accepts writes."""

OLD_ROWS = "fleetbeat:old-rows"
"""Set while a prune job has left old rows for the next one."""

NOTICES_DUE = "fleetbeat:notices-due"
"""When the next notification is due, in milliseconds since 1970; absent if there is none."""

POOLS = "fleetbeat:pools"
"""A hash: the running pools of workers, each as JSON under its id."""

WANTED = "fleetbeat:wanted"
"""A hash: how many workers each pool should have, under its id: `4`, or `1:8` for autoscaling."""

REPLY_SECONDS = 60
"""How long a worker's reply is kept for the sender that asked for it."""


REPLY_PREFIX = "fleetbeat:reply:"
"""The prefix of the keys of replies."""


def reply_key(message_id: UUID) -> str:
    """Build the key of the list to which the reply to a message is pushed."""
    return f"{REPLY_PREFIX}{message_id}"
