"""Client functions of an agent: register, send_heartbeat and deregister.

Each queues a message and returns; a background thread sends it. Only a heartbeat with `wait_seconds` waits.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fleetbeat_producer.background.process import process_sender, queue_message
from fleetbeat_producer.compose import choose_session_id, new_deregistration, new_heartbeat, new_registration
from fleetbeat_producer.transport import check_wait_seconds, process_transport

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime
    from uuid import UUID


@dataclass(frozen=True, slots=True)
class Registration:
    """An agent's registration as it was sent."""

    session_id: UUID
    """Pass it to each heartbeat of this run."""
    agent_name: str
    """The normalised name: NFC, without white space around it."""
    message_id: UUID


@dataclass(frozen=True, slots=True)
class HeartbeatResult:
    """A heartbeat as the workers stored it, if the call waited; otherwise as it was sent."""

    session_id: UUID
    agent_name: str | None
    """None unless the call waited: only the database knows it."""
    timestamp: datetime
    """When the agent was seen (`seen_at`, UTC) if the call waited; otherwise when the heartbeat was sent."""
    progress: str | None


def register(  # noqa: PLR0913 - one for each field of the message
    agent_name: str,
    *,
    interval_seconds: float | None = None,
    schedule: str | None = None,
    time_zone: str | None = None,
    grace_seconds: float | None = None,
    missed_intervals: int | None = None,
    stuck_after: int | None = None,
    project: str | None = None,
    work: str | None = None,
    parent_id: UUID | str | None = None,
    metadata: Mapping[str, Any] | None = None,
    parallel: bool = False,
    stable: bool = False,
    session_id: UUID | str | None = None,
) -> Registration:
    """Register an agent, which promises a heartbeat each `interval_seconds` or at each time of a cron `schedule`.

    Exactly one of the two is given. `time_zone` (IANA name, UTC if absent) goes with a schedule. `grace_seconds` is how
    much later than promised a heartbeat may arrive, `missed_intervals` how many intervals the agent may miss before it
    is degraded, and `stuck_after` after how many intervals without a change in its work it is stuck (0: never; an agent
    on a schedule never is). For those left out, the fleet's settings apply. `parent_id` is the session that this agent
    works for. A live session of the same name ends, unless `parallel` is given. The session id is random unless
    `session_id` is given or `stable` derives it from the name. Registering a session again changes its promise.

    Raises InvalidMessage (a ValueError) for a bad argument, and SettingsError for a bad environment.
    """
    message = new_registration(
        choose_session_id(agent_name, stable=stable, parallel=parallel, session_id=session_id),
        agent_name=agent_name,
        interval_seconds=interval_seconds,
        schedule=schedule,
        time_zone=time_zone,
        grace_seconds=grace_seconds,
        missed_intervals=missed_intervals,
        stuck_after=stuck_after,
        project=project,
        work=work,
        parent_id=parent_id,
        metadata=metadata,
        parallel=parallel,
    )
    queue_message(message)
    return Registration(message.session_id, message.agent_name, message.id)


def send_heartbeat(  # noqa: PLR0913 - one for each field of the message
    session_id: UUID | str,
    progress: str | None = None,
    work_item_id: str | None = None,
    *,
    status: str | None = None,
    summary: str | None = None,
    error: str | None = None,
    open_tasks: int | None = None,
    stale_tasks: int | None = None,
    metadata: Mapping[str, Any] | None = None,
    wait_seconds: float | None = None,
) -> HeartbeatResult:
    """Report that a session is alive, and what it does. Fields left out keep their values from earlier heartbeats.

    An empty `error` clears an earlier error. With `wait_seconds` the call waits until the workers have stored the
    heartbeat (and all earlier messages of this process), and returns it as stored. Without, it returns at once.

    Raises InvalidMessage (a ValueError) for a bad argument, and SettingsError for a bad environment; with
    `wait_seconds` also RedisUnavailable, NotConfirmed, UnknownSession, SessionEnded and MessageRejected.
    """
    message = new_heartbeat(
        session_id,
        progress=progress,
        work_item_id=work_item_id,
        status=status,
        summary=summary,
        error=error,
        open_tasks=open_tasks,
        stale_tasks=stale_tasks,
        metadata=metadata,
        reply=wait_seconds is not None,
    )
    if wait_seconds is None:
        queue_message(message)
        return HeartbeatResult(message.session_id, None, message.sent_at, message.progress)
    check_wait_seconds(wait_seconds)
    began = time.monotonic()
    process_sender().flush(wait_seconds)  # the registration may still be queued
    left = max(wait_seconds - (time.monotonic() - began), 0.001)
    reply = process_transport().send_and_wait(message, left)
    return HeartbeatResult(reply.session_id, reply.agent_name, reply.timestamp or message.sent_at, reply.progress)


def deregister(session_id: UUID | str, *, error: str | None = None, exit_status: int | None = None) -> None:
    """End a session: no more heartbeats are expected. Ending it twice does no harm.

    Raises InvalidMessage (a ValueError) for a bad argument, and SettingsError for a bad environment.
    """
    queue_message(new_deregistration(session_id, error=error, exit_status=exit_status))
