"""Problem reporting: one log line for a problem that all processes of a pool meet, and one when it is resolved.

A child process reports each failure and the first success after it to the pool's parent, through a pipe. The parent
logs each kind of problem once, again each minute while it lasts, and once when no process has it any more. A process
outside a pool logs its own reports in the same way.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field

from fleetbeat_worker.telemetry.log import logger

REPEAT_SECONDS = 60.0
"""How often a problem that lasts is logged."""
MAX_LINE_BYTES = 4096
"""PIPE_BUF: a line up to this length is written to a pipe as a whole or not at all, also by several processes."""
MAX_MESSAGE_LENGTH = 512

_pipe: ContextVar[int | None] = ContextVar("pipe", default=None)


def report_through(pipe: int) -> None:
    """Send the reports of this process, and of those forked from it, to the writing end of a non-blocking pipe."""
    _pipe.set(pipe)


class ProblemReporter:
    """Reports one kind of problem, and its end, in one role (for example "ingest")."""

    def __init__(self, kind: str, role: str) -> None:
        """Report through the pipe that this process has now, or else to its own log."""
        self._kind = kind
        self._role = role
        self._pipe = _pipe.get()
        self._log = ProblemLog()
        self._reported_success = False

    def report(self, message: str) -> None:
        """Report that the problem is there; to be called at each failure."""
        self._reported_success = False
        self._send(message, resolved=False)

    def resolve(self, message: str) -> None:
        """Report success; to be called at each success, of which the first one counts."""
        if not self._reported_success:
            self._reported_success = True
            self._send(message, resolved=True)

    def _send(self, message: str, *, resolved: bool) -> None:
        if self._pipe is None:
            self._log.receive(self._kind, self._role, os.getpid(), message, resolved=resolved)
            return
        report = {
            "kind": self._kind,
            "role": self._role,
            "pid": os.getpid(),
            "message": message[:MAX_MESSAGE_LENGTH],
            "resolved": resolved,
        }
        with suppress(OSError):  # a pipe that is full or closed: work matters more than the report
            os.write(self._pipe, json.dumps(report).encode()[: MAX_LINE_BYTES - 1] + b"\n")


@dataclass
class _Problem:
    """One kind of problem."""

    reported_at: dict[tuple[str, int], float] = field(default_factory=dict)
    """The last failure of each process that has reported no success since, by its role and pid."""
    succeeded_at: dict[str, float] = field(default_factory=dict)
    """The last success that a process in each role reported."""
    resolved_message: str = ""
    repeat_at: float | None = None
    """When the problem is logged again; None unless it has been logged."""


class ProblemLog:
    """Logs the problems that several processes report. It belongs to the parent of a pool."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, is_alive: Callable[[int], bool] | None = None
    ) -> None:
        self._clock = clock
        self._is_alive = is_alive or _is_alive
        self._problems: dict[str, _Problem] = {}
        self._incomplete_line = b""

    def read(self, pipe: int) -> None:
        """Receive all reports from the reading end of a non-blocking pipe."""
        with suppress(BlockingIOError):
            while chunk := os.read(pipe, 65_536):
                *lines, self._incomplete_line = (self._incomplete_line + chunk).split(b"\n")
                for line in lines:
                    with suppress(ValueError, KeyError, TypeError):  # a line that was cut off
                        self.receive(**json.loads(line))

    def receive(self, kind: str, role: str, pid: int, message: str, *, resolved: bool) -> None:
        """Take one process's report, and log what is new."""
        problem = self._problems.setdefault(kind, _Problem())
        now = self._clock()
        if not resolved:
            problem.reported_at[role, pid] = now
            if problem.repeat_at is None or now >= problem.repeat_at:
                problem.repeat_at = now + REPEAT_SECONDS
                logger.warning(message)
            return
        problem.reported_at.pop((role, pid), None)
        problem.succeeded_at[role] = now
        problem.resolved_message = message
        self._log_if_resolved(problem)

    def drop_ended_processes(self) -> None:
        """Resolve problems that only ended processes had; to be called now and then."""
        for problem in self._problems.values():
            self._log_if_resolved(problem)

    def _log_if_resolved(self, problem: _Problem) -> None:
        for (role, pid), reported_at in list(problem.reported_at.items()):
            # An ended process reports no success itself: that of another process in its role counts instead.
            if problem.succeeded_at.get(role, -1.0) >= reported_at and not self._is_alive(pid):
                del problem.reported_at[role, pid]
        if not problem.reported_at and problem.repeat_at is not None:
            problem.repeat_at = None
            logger.info(problem.resolved_message)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, PermissionError):  # ended; or another user's process has got the pid since
        return False
    return True
