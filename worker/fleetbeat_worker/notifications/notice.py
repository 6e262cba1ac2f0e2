"""Notices: what a change is notified with, before it is in the outbox: a key, and the facts that its text is made of.

A key names the change by its session and its time, so that a change that is found twice is notified once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol
from uuid import UUID

from fleetbeat_worker.rules.enums import NoticeKind
from fleetbeat_worker.rules.liveness import Promise, silent_since
from fleetbeat_worker.rules.spans import to_milliseconds

NAMED = 20
"""How many agents a notice about many names."""

HEARTBEAT = "last heartbeat"
REGISTRATION = "registration"
PAUSE = "end of the pause"
MAINTENANCE = "end of maintenance"
"""What silence counts from, in the words of `fleetbeat explain`."""

RESTARTED = "restarted"
DEREGISTERED = "deregistered"
"""How a degraded or stuck session ended: another session took its name, or it was deregistered."""


@dataclass(frozen=True, slots=True)
class Notice:
    """A change that people are notified of."""

    kind: NoticeKind
    key: str
    """The same for the same change."""
    detail: dict[str, Any]
    """The facts that its text is made of."""
    session_id: UUID | None = None
    agent_name: str | None = None
    project: str | None = None


class _NamedSession(Protocol):
    """A session that a notice is about."""

    @property
    def session_id(self) -> UUID: ...
    @property
    def agent_name(self) -> str: ...
    @property
    def project(self) -> str | None: ...


def agent_notice(
    kind: NoticeKind,
    agent: _NamedSession,
    changed_at: datetime,
    detail: Mapping[str, Any],
    *,
    number: int | None = None,
) -> Notice:
    """Make the notice of one agent's change; `number` counts its reminders."""
    key = f"{kind.value}:{agent.session_id}:{to_milliseconds(changed_at)}"
    if number is not None:
        key += f":{number}"
    return Notice(kind, key, dict(detail), agent.session_id, agent.agent_name, agent.project)


def fleet_notice(kind: NoticeKind, changed_at: datetime, detail: Mapping[str, Any], *, number: int = 0) -> Notice:
    """Make the notice of a change of many agents or the whole fleet; `number` counts those of the same time."""
    key = f"{kind.value}:{to_milliseconds(changed_at)}"
    return Notice(kind, f"{key}:{number}" if number else key, dict(detail))


def promise_facts(promise: Promise, missed_limit: int) -> dict[str, Any]:
    """Derive the facts of what an agent promised; `missed_limit` is the fleet's."""
    return {
        "interval_seconds": promise.interval_seconds,
        "schedule": promise.schedule,
        "time_zone": promise.time_zone,
        "grace_seconds": promise.grace_seconds,
        "missed_limit": promise.limit(missed_limit),
    }


def silence_facts(
    registered_at: datetime,
    last_seen_at: datetime | None,
    resumed_at: datetime | None,
    cleared_at: datetime | None = None,
) -> dict[str, Any]:
    """Derive the facts of an agent's silence: from when it counts and why, and the last heartbeat.

    `cleared_at`: the end of the maintenance window from which it counts, if it does.
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
