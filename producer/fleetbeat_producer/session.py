"""Agent session: registers an agent, sends automatic heartbeats, and deregisters it at the end."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any, Self

from fleetbeat_producer.background.process import process_sender, queue_message
from fleetbeat_producer.compose import choose_session_id, new_deregistration, new_heartbeat, new_registration, reissue

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType
    from uuid import UUID

_LONGEST_ERROR = 1000


class AgentSession:
    """An agent's run, from its registration to its deregistration.

        with AgentSession("crawler-7", interval_seconds=30) as session:
            session.progress("120 pages", work_item_id="W-17")

    A background thread sends a heartbeat on each interval, which reports only that the process is alive. With
    `auto=False`, or with a cron `schedule`, the agent has to send its heartbeats. At the end of the block the session
    is deregistered, with the error if the block raised one. `async with` does the same. No call waits for the network,
    and none raises because Redis is away; a bad argument raises InvalidMessage (a ValueError) at once.
    """

    def __init__(  # noqa: PLR0913 - one for each field of the message
        self,
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
        auto: bool = True,
    ) -> None:
        """Prepare a session; the arguments are those of `register`. Nothing is sent before `start`.

        Raises InvalidMessage for a bad argument.
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
        self._registration = message
        self.session_id: UUID = message.session_id
        """The session's id, for `send_heartbeat` and as `parent_id` of other agents."""
        self.agent_name: str = message.agent_name
        """The normalised name: NFC, without white space around it."""
        self._interval_seconds = message.interval_seconds if auto else None
        self._process_id = 0

    def start(self) -> None:
        """Register, and start the automatic heartbeats. `with` calls this at the start of its block.

        Raises SettingsError when the environment has a value that can't be used.
        """
        sender = process_sender()
        self._process_id = os.getpid()
        sender.put(reissue(self._registration))
        if self._interval_seconds is not None:
            sender.auto_heartbeats.add(self.session_id, self._interval_seconds, time.monotonic())
            sender.wake()

    def end(self, *, error: str | None = None, exit_status: int | None = None) -> None:
        """Deregister, and stop the automatic heartbeats. `with` calls this at the end of its block.

        It does nothing in a child that was forked inside the block: the session is its parent's.
        """
        if self._process_id != os.getpid():
            return
        deregistration = new_deregistration(self.session_id, error=error, exit_status=exit_status)
        self._process_id = 0
        process_sender().auto_heartbeats.remove(self.session_id)
        queue_message(deregistration)

    def beat(  # noqa: PLR0913 - one for each field of the message
        self,
        progress: str | None = None,
        work_item_id: str | None = None,
        *,
        status: str | None = None,
        summary: str | None = None,
        error: str | None = None,
        open_tasks: int | None = None,
        stale_tasks: int | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Send a heartbeat: the agent is alive, and does this. Fields left out keep their earlier values.

        Raises InvalidMessage for a bad argument.
        """
        self._send(
            progress=progress,
            work_item_id=work_item_id,
            status=status,
            summary=summary,
            error=error,
            open_tasks=open_tasks,
            stale_tasks=stale_tasks,
            metadata=metadata,
        )

    def progress(self, text: str, work_item_id: str | None = None) -> None:
        """Report progress, and the work item that it is about. Raises InvalidMessage for a bad argument."""
        self._send(progress=text, work_item_id=work_item_id)

    def status(self, word: str) -> None:
        """Report a status in a word of the agent's own: ok, busy, blocked. Raises InvalidMessage for a bad argument."""
        self._send(status=word)

    def error(self, text: str) -> None:
        """Report an error; an empty text clears it. Raises InvalidMessage for a bad argument."""
        self._send(error=text)

    def _send(self, **fields: object) -> None:
        queue_message(new_heartbeat(self.session_id, **fields))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.end(error=_describe(error))

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.end(error=_describe(error))


def _describe(error: BaseException | None) -> str | None:
    """Describe an exception for a deregistration; None stands for an orderly end."""
    if error is None or (isinstance(error, SystemExit) and error.code in {None, 0}):
        return None
    try:
        text = f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001 - an exception's own __str__ may raise
        text = type(error).__name__
    return text[:_LONGEST_ERROR]
