"""A session that an agent holds: it registers, beats by itself, and says goodbye."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any, Self

from fleetbeat_producer.background.process import say, this_process
from fleetbeat_producer.compose import new_goodbye, new_heartbeat, new_registration, said_again, session_to_register

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType
    from uuid import UUID


class AgentSession:
    """An agent's run, from its registration to its end.

        with AgentSession("crawler-7", interval_seconds=30) as session:
            session.progress("120 pages", work_item_id="W-17")

    It beats by itself in the background, on its interval; such a beat says only that the process lives. With
    `auto=False`, and with a cron `schedule`, the agent beats. At the end of the block it says goodbye, with the error
    if the block raised one. `async with` does the same. No call waits for the network, and none raises because Redis
    is away; a bad argument is an InvalidMessage (a ValueError) at once.
    """

    def __init__(  # noqa: PLR0913 - each is a fact that an agent may state of itself
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
        """Prepare a session; the arguments are those of `register`. Nothing is sent before the block is entered.

        Raises InvalidMessage for a bad argument.
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
        self._registration = message
        self.session_id: UUID = message.session_id
        """Goes with each heartbeat of this run."""
        self.agent_name: str = message.agent_name
        """The name as it is stored: NFC, without white space around it."""
        self._interval_seconds = message.interval_seconds if auto else None
        self._process_id = 0

    def start(self) -> None:
        """Register, and begin to beat. What `with` does at the start of its block.

        Raises SettingsError when the environment has a value that can't be used.
        """
        sender = this_process()
        self._process_id = os.getpid()
        sender.put(said_again(self._registration))
        if self._interval_seconds is not None:
            sender.beats.add(self.session_id, self._interval_seconds, time.monotonic())
            sender.awaken()

    def end(self, *, error: str | None = None, exit_status: int | None = None) -> None:
        """Say goodbye, and beat no more. What `with` does at the end of its block.

        In a child that was forked in the block it does nothing: the session is its parent's.
        """
        if self._process_id != os.getpid():
            return
        goodbye = new_goodbye(self.session_id, error=error, exit_status=exit_status)
        self._process_id = 0
        this_process().beats.remove(self.session_id)
        say(goodbye)

    def beat(  # noqa: PLR0913 - each is a fact that an agent may state of itself
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
        """Say that the agent is alive, and what it does. What is left out stays as it was said last.

        Raises InvalidMessage for a bad argument.
        """
        self._say(
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
        """Say what was just done, and on which work item. Raises InvalidMessage for a bad argument."""
        self._say(progress=text, work_item_id=work_item_id)

    def status(self, word: str) -> None:
        """Say in the agent's own word how it is: ok, busy, blocked, error. Raises InvalidMessage for a bad argument."""
        self._say(status=word)

    def error(self, text: str) -> None:
        """Say what went wrong; an empty text says that it is over. Raises InvalidMessage for a bad argument."""
        self._say(error=text)

    def _say(self, **fields: object) -> None:
        say(new_heartbeat(self.session_id, **fields))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.end(error=_told(error))

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.end(error=_told(error))


_ERROR_SHOWN = 1000


def _told(error: BaseException | None) -> str | None:
    """Return what a message can say of an exception, or None for an orderly end."""
    if error is None or (isinstance(error, SystemExit) and error.code in {None, 0}):
        return None
    try:
        text = f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001 - an exception may not even be able to say what it is
        text = type(error).__name__
    return text[:_ERROR_SHOWN]
