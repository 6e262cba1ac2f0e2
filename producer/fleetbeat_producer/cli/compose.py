"""The messages that a command's options become. An error names the options, as those are what was typed."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from fleetbeat_producer import compose as outgoing

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
"""The fields of messages, and the options that they come from."""


def compose(kind: type[_Kind], session_id: UUID | str, **fields: object) -> _Kind:
    """Return a new message, as `outgoing.compose` does. Raises InvalidMessage."""
    return outgoing.compose_for(OPTIONS, kind, session_id, fields)


def stable_session(agent_name: str) -> tuple[str, UUID]:
    """Return the name that `--agent` gave, as it is stored, and its session id. Raises InvalidMessage."""
    return outgoing.stable_session(agent_name, called={"agent_name": "--agent"})


def session_to_register(agent_name: str, *, stable: bool, parallel: bool, session_id: str | None) -> UUID | str:
    """Return the id for the session of a registration. Raises InvalidMessage."""
    return outgoing.session_to_register(
        agent_name, stable=stable, parallel=parallel, session_id=session_id, called=OPTIONS
    )
