"""The three calls of an agent: register, send_heartbeat, deregister.

Each puts its message into the buffer of this process and returns; a thread sends it. Only a heartbeat that asks for an
answer waits.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fleetbeat_producer.background.process import say, this_process
from fleetbeat_producer.compose import new_goodbye, new_heartbeat, new_registration, session_to_register

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime
    from uuid import UUID


@dataclass(frozen=True, slots=True)
class Registration:
    """An agent's registration as it was sent."""

    session_id: UUID
    """Goes with each heartbeat of this run."""
    agent_name: str
    """The name as it is stored: NFC, without white space around it."""
    message_id: UUID


@dataclass(frozen=True, slots=True)
class HeartbeatResult:
    """What is known of a heartbeat: what SQL says if the call waited, else what was sent."""

    session_id: UUID
    agent_name: str | None
    """None unless the call waited: only SQL knows it."""
    timestamp: datetime
    """When the agent counts as seen (UTC) if the call waited, else when the heartbeat was sent."""
    progress: str | None


def register(  # noqa: PLR0913 - each is a fact that an agent may state of itself
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
    """Make an agent known, with its promise: a heartbeat each `interval_seconds`, or at each slot of a cron `schedule`.

    Of the two exactly one is given. `time_zone` (IANA name, UTC if absent) goes with a schedule. `grace_seconds` is
    how much later than promised a heartbeat may come, `missed_intervals` how many it may miss before it is degraded,
    `stuck_after` after how many intervals in which nothing changed of what it does it counts as stuck (0: never; on a
    schedule it never does); what isn't given is as the fleet has it. `parent_id` is the session that this agent works
    for. A live session of the same name ends, unless `parallel` is given. The session id is a new random one, or
    `session_id`, or, with `stable`, derived from the name; registering the same session again changes what it
    promised.

    Raises InvalidMessage (a ValueError) for a bad argument, and SettingsError for a bad environment.
    """
    message = new_registration(
        session_to_register(agent_name, stable=stable, parallel=parallel, session_id=session_id),
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
    say(message)
    return Registration(message.session_id, message.agent_name, message.id)


def send_heartbeat(  # noqa: PLR0913 - each is a fact that an agent may state of itself
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
    """Say that a session is alive, and what it does. What is left out stays as the last heartbeat said it.

    `error` as an empty text says that an earlier error is over. With `wait_seconds` the call waits as long for the
    workers to store the heartbeat (after all that this process said before), and returns what SQL says; without, it
    returns at once.

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
        say(message)
        return HeartbeatResult(message.session_id, None, message.sent_at, message.progress)
    from fleetbeat_producer.transport import check_wait, transport_of_this_process

    check_wait(wait_seconds)
    began = time.monotonic()
    this_process().flush(wait_seconds)  # the registration may still be on its way
    left = max(wait_seconds - (time.monotonic() - began), 0.001)
    reply = transport_of_this_process().ask(message, left)
    return HeartbeatResult(reply.session_id, reply.agent_name, reply.timestamp or message.sent_at, reply.progress)


def deregister(session_id: UUID | str, *, error: str | None = None, exit_status: int | None = None) -> None:
    """Say goodbye: no more heartbeats are expected of this session. Saying it twice does no harm.

    Raises InvalidMessage (a ValueError) for a bad argument, and SettingsError for a bad environment.
    """
    say(new_goodbye(session_id, error=error, exit_status=exit_status))
