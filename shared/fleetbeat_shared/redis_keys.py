"""The names that both sides agree on: Redis keys, the consumer group, the RQ queue."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from uuid import UUID

INBOX = "fleetbeat:inbox"
"""The Redis stream that agents add their messages to."""

FIELD = "m"
"""The one field of an inbox entry: the message as JSON. Short, because every queued heartbeat carries it."""

GROUP = "fleetbeat"
"""The consumer group through which the workers read the inbox."""

ACCOUNT = "fleetbeat:account"
"""A hash: what the workers took out of the inbox, counted."""

QUEUE = "fleetbeat"
"""The RQ queue of the jobs `ingest`, `sweep`, `notify` and `prune`. One queue only: with several, RQ pops in a way that
loses a job when the worker dies."""

DISPATCHER_LOCK = "fleetbeat:dispatcher"
"""Held by the elected dispatcher."""

STORED = "fleetbeat:stored"
"""A hash: how many entries each worker took out of the inbox, by its name."""

PULSE = "fleetbeat:pulse"
"""When Redis last took what a pool wrote, in milliseconds since 1970."""

PULSE_GAPS = "fleetbeat:pulse-gaps"
"""A list: when it didn't, lately, as `start:end`."""

PROBE = "fleetbeat:probe"
"""Written and removed before each sweep, to see whether Redis takes it."""

OLD_ROWS = "fleetbeat:old-rows"
"""There while a prune job left old rows for the next one."""

NOTICES_DUE = "fleetbeat:notices-due"
"""When the next notification is due, in milliseconds since 1970; absent if none waits."""

POOLS = "fleetbeat:pools"
"""A hash: the pools of workers that run, each as JSON under its id."""

WANTED = "fleetbeat:wanted"
"""A hash: how many workers each pool should have, under its id: `4`, or `1:8` for as many as the lag asks for."""

REPLY_SECONDS = 60
"""How long a worker's answer waits for the sender that asked for it."""


REPLY_PREFIX = "fleetbeat:reply:"
"""How the keys of answers begin."""


def reply_key(message_id: UUID) -> str:
    """Return the key of the list on which the answer to a message arrives."""
    return f"{REPLY_PREFIX}{message_id}"
