"""What is told of a change: its key, and the facts that its text is made of.

A key names the change itself, by its session and its moment, so that a change that is found twice is told once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from fleetbeat_worker.rules.enums import NoticeKind
from fleetbeat_worker.rules.liveness import Promise, silent_since
from fleetbeat_worker.rules.spans import to_milliseconds

NAMED = 20
"""How many agents a notice of many names."""


class Who(NamedTuple):
    """Of which agent something is told."""

    session_id: UUID
    agent_name: str
    project: str | None


def agent_notice(
    kind: NoticeKind, who: Who, changed_at: datetime, detail: Mapping[str, Any], *, number: int | None = None
) -> Notice:
    """Return the notice of an agent's change; `number` counts the reminders of one."""
    key = f"{kind.value}:{who.session_id}:{to_milliseconds(changed_at)}"
    if number is not None:
        key += f":{number}"
    return Notice(kind, key, dict(detail), *who)


def fleet_notice(kind: NoticeKind, changed_at: datetime, detail: Mapping[str, Any], *, number: int = 0) -> Notice:
    """Return the notice of a change of the whole fleet, or of many agents at once; `number`: of those of a moment."""
    key = f"{kind.value}:{to_milliseconds(changed_at)}"
    return Notice(kind, f"{key}:{number}" if number else key, dict(detail))


def promise_facts(promise: Promise, missed_limit: int) -> dict[str, Any]:
    """Return what an agent had promised, as facts; `missed_limit` is the fleet's."""
    return {
        "interval_seconds": promise.interval_seconds,
        "schedule": promise.schedule,
        "time_zone": promise.time_zone,
        "grace_seconds": promise.grace_seconds,
        "missed_limit": promise.limit(missed_limit),
    }


@dataclass(frozen=True, slots=True)
class Notice:
    """Something to tell."""

    kind: NoticeKind
    key: str
    """The same for the same change: found twice it is told once."""
    detail: dict[str, Any]
    """The facts that its text is made of."""
    session_id: UUID | None = None
    agent_name: str | None = None
    project: str | None = None


HEARTBEAT = "last heartbeat"


REGISTRATION = "registration"


PAUSE = "end of the pause"


MAINTENANCE = "end of maintenance"
"""Why silence counts from a moment: the words of `fleetbeat explain`."""


RESTARTED = "restarted"


GOODBYE = "goodbye"
"""How a session ended of which people were told: another one took its name, or it said so."""


def silence_facts(
    registered_at: datetime,
    last_seen_at: datetime | None,
    resumed_at: datetime | None,
    cleared_at: datetime | None = None,
) -> dict[str, Any]:
    """Return from when on an agent's silence counts and why, and its last sign of life, as facts that can be told.

    `cleared_at`: the end of the maintenance that started its clock anew since then, if one did.
    """
    since, why = silent_since(registered_at, last_seen_at, resumed_at), REGISTRATION
    if cleared_at is not None:
        since, why = cleared_at, MAINTENANCE
    elif since == last_seen_at:
        why = HEARTBEAT
    elif since != registered_at:
        why = PAUSE
    return {
        "since": since.isoformat(),
        "since_is": why,
        "last_seen_at": None if last_seen_at is None else last_seen_at.isoformat(),
        "registered_at": registered_at.isoformat(),
    }
