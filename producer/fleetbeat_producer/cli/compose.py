"""Messages composed from a command's options. Errors name the options, as those are what the user typed."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from fleetbeat_producer import compose as composing

if TYPE_CHECKING:
    from uuid import UUID

    from fleetbeat_shared.messages import Deregister, Heartbeat, Register

_Kind = TypeVar("_Kind", "Register", "Heartbeat", "Deregister")

OPTIONS = {
    "agent_name": "--name",
    "session_id": "--session",
    "interval_seconds": "--every",
    "schedule": "--cron",
    "time_zone": "--time-zone",
    "grace_seconds": "--grace",
    "missed_intervals": "--missed",
    "stuck_after": "--stuck-after",
    "project": "--project",
    "work": "--work",
    "parent_id": "--parent",
    "metadata": "--metadata",
    "stable": "--stable",
    "parallel": "--parallel",
    "progress": "--progress",
    "work_item_id": "--work-item",
    "status": "--status",
    "summary": "--summary",
    "error": "--error",
    "open_tasks": "--open-tasks",
    "stale_tasks": "--stale-tasks",
    "exit_status": "--exit-status",
}
"""The fields of messages, and the options that set them."""


def compose(kind: type[_Kind], session_id: UUID | str, **fields: object) -> _Kind:
    """Compose a message. Raises InvalidMessage."""
    return composing.compose(kind, session_id, OPTIONS, **fields)


def stable_session(agent_name: str) -> tuple[str, UUID]:
    """Normalise the name given as `--agent`, and derive its stable session id; return both. Raises InvalidMessage."""
    return composing.stable_session(agent_name, labels={"agent_name": "--agent"})


def choose_session_id(agent_name: str, *, stable: bool, parallel: bool, session_id: str | None) -> UUID | str:
    """Choose the session id of a registration. Raises InvalidMessage."""
    return composing.choose_session_id(
        agent_name, stable=stable, parallel=parallel, session_id=session_id, labels=OPTIONS
    )
