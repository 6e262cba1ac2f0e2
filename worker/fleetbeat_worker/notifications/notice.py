"""What is told of a change: its key, and the facts that its text is made of.

A key names the change itself, by its session and its moment, so that a change that is found twice is told once.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from fleetbeat_worker.notifications.outbox import Notice
from fleetbeat_worker.rules.enums import NoticeKind
from fleetbeat_worker.rules.liveness import Promise
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
