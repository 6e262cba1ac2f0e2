"""TODO."""

from __future__ import annotations

import json
import logging
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from fleetbeat_worker.telemetry.log import logger

SAY_EVERY_SECONDS = 60.0


class Relay(logging.NullHandler, ABC):
    """The way by which a pool's processes tell their parent of trouble, which then speaks for all of them.

    It has its place among the logger's handlers, as all that belongs to a process's logging; it handles no record.
    """

    @abstractmethod
    def tell(self, kind: str, role: str, message: str, *, is_over: bool) -> None:
        """Tell of trouble, or of success."""


def relay_through(relay: Relay) -> None:
    """Let this process, and those that it forks, tell of trouble in this way."""
    logger.addHandler(relay)


class Complaint:
    """Says the same trouble once, then once a minute, and once that it is over.

    In a process of a pool it tells the parent instead, each time, and of the first success too.
    """

    def __init__(
        self,
        kind: str,
        role: str,
        say_every_seconds: float = SAY_EVERY_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Complain of one kind of trouble, in a role: for a dead one, only others in its role say that it is over."""
        self._kind = kind
        self._role = role
        self._every = say_every_seconds
        self._clock = clock
        self._relay = next((handler for handler in logger.handlers if isinstance(handler, Relay)), None)
        self._told_of_success = False
        self._next: float | None = None

    def trouble(self, message: str) -> None:
        """Say what is wrong, unless it was just said."""
        if self._relay is not None:
            self._told_of_success = False
            self._relay.tell(self._kind, self._role, message, is_over=False)
            return
        now = self._clock()
        if self._next is None or now >= self._next:
            self._next = now + self._every
            logger.warning(message)

    def over(self, message: str) -> None:
        """Say that it is well again, if trouble was told."""
        if self._relay is not None:
            if not self._told_of_success:
                self._told_of_success = True
                self._relay.tell(self._kind, self._role, message, is_over=True)
        elif self._next is not None:
            self._next = None
            logger.info(message)


_MAX_BYTES = 4096
"""A line up to this length (PIPE_BUF) is written to a pipe as a whole or not at all, also by several at once."""


class PipeRelay(Relay):
    """A child's way to tell its parent."""

    def __init__(self, file: int) -> None:
        """Write to the pipe whose writing end this is; it doesn't block."""
        super().__init__()
        self._file = file

    def tell(self, kind: str, role: str, message: str, *, is_over: bool) -> None:
        """Tell of trouble, or of success; if the parent doesn't listen, nobody waits for it."""
        said = {"kind": kind, "role": role, "pid": os.getpid(), "message": message[:512], "is_over": is_over}
        with suppress(OSError):
            os.write(self._file, json.dumps(said).encode()[: _MAX_BYTES - 1] + b"\n")


@dataclass
class _Trouble:
    """One kind of trouble."""

    complaining: dict[tuple[str, int], float] = field(default_factory=dict)
    """Who told of it and not of its end, by role and process; and when they last did."""
    succeeded: dict[str, float] = field(default_factory=dict)
    """When somebody in a role last told of success."""
    is_over: str = ""
    """What they said then."""
    say_again_at: float | None = None
    """None as long as nothing was said."""


class Troubles:
    """The parent's view."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, lives: Callable[[int], bool] | None = None) -> None:
        self._clock = clock
        self._lives = lives or _lives
        self._kinds: dict[str, _Trouble] = {}
        self._rest = b""

    def read(self, file: int) -> None:
        """Hear all that the children wrote to the pipe whose reading end this is; it doesn't block."""
        with suppress(BlockingIOError):
            while chunk := os.read(file, 65_536):
                *lines, self._rest = (self._rest + chunk).split(b"\n")
                for line in lines:
                    with suppress(ValueError, KeyError, TypeError):
                        said = json.loads(line)
                        self.hear(said["kind"], said["role"], said["pid"], said["message"], is_over=said["is_over"])

    def hear(self, kind: str, role: str, pid: int, message: str, *, is_over: bool) -> None:
        """Hear one process, and speak if there is something new."""
        trouble = self._kinds.setdefault(kind, _Trouble())
        now = self._clock()
        if not is_over:
            trouble.complaining[role, pid] = now
            if trouble.say_again_at is None or now >= trouble.say_again_at:
                trouble.say_again_at = now + SAY_EVERY_SECONDS
                logger.warning(message)
            return
        trouble.complaining.pop((role, pid), None)
        trouble.succeeded[role] = now
        trouble.is_over = message
        self._say_if_over(trouble)

    def review(self) -> None:
        """Look whether those who still complained have died meanwhile. To be called now and then."""
        for trouble in self._kinds.values():
            self._say_if_over(trouble)

    def _say_if_over(self, trouble: _Trouble) -> None:
        for (role, pid), told_at in list(trouble.complaining.items()):
            if trouble.succeeded.get(role, -1.0) >= told_at and not self._lives(pid):
                del trouble.complaining[role, pid]
        if not trouble.complaining and trouble.say_again_at is not None:
            trouble.say_again_at = None
            logger.info(trouble.is_over)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return False  # somebody else's by now
    return True
