"""Silences: what the time rules say of a session's signs, played back in the order in which they were received.

Pure: no clock, no database. Every moment is an integer of milliseconds since 1970, as millions of signs are played.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol


class Deadline(Protocol):
    """A session's promise, as what follows from it."""

    least: int
    """How long after a sign the deadline is at least: before that it needn't be worked out."""

    def __call__(self, since: int) -> int:
        """Return when a session that is silent since a moment becomes degraded."""

    def before_maintenance(self, since: int) -> int:
        """Return that without the maintenance that moved it: by this, a heartbeat is recent enough or isn't."""


@dataclass(slots=True)
class Silence:
    """A time in which a session was degraded."""

    since: int
    """From when on it was silent."""
    flagged_at: int
    """When it had missed as much as it may."""
    ended_at: int | None = None
    """When it was heard again, ended or paused; None if it still is."""
    ended_by: str | None = field(default=None, compare=False)
    """Which of these it was, as far as somebody noted it: `heard`, `ended` or `paused`."""


class Replay:
    """One session, judged again from its registration on. What happened comes in the order of its times.

    It is judged as sweeps would that run all the time and are never behind. Real ones come some seconds later, so that
    a heartbeat that arrives between the deadline and the next sweep ends here a silence that nobody flagged.
    """

    def __init__(self, deadline: Deadline) -> None:
        self.silences: list[Silence] = []
        self.last_seen_at: int | None = None
        self.since = 0
        """From when on silence counts."""
        self.live = False
        self.paused = False
        self._deadline = deadline
        self._open: Silence | None = None
        self._due = 0
        self._due_is_exact = False

    @property
    def due(self) -> int:
        """When it becomes degraded, if it stays silent."""
        if not self._due_is_exact:
            self._due, self._due_is_exact = self._deadline(self.since), True
        return self._due

    def start(self, at: int, *, live: bool, paused: bool) -> None:
        """Begin in the middle: the session is what is given, and its clock starts at a moment."""
        self.live, self.paused = live, paused
        self._restart(at)

    def register(self, at: int, deadline: Deadline) -> None:
        """Take a promise. It opens the session if that isn't open, and is no sign of life."""
        self._look(at)
        self._deadline = deadline
        if self.live:
            self._restart(self.since)
        else:
            self.live = True
            self._restart(at)

    def beat(self, received_at: int, seen_at: int) -> None:
        """Take a heartbeat; one that was seen before the last one changes nothing."""
        if received_at > self._due:
            self._look(received_at)
        if self.last_seen_at is not None and seen_at <= self.last_seen_at:
            return
        self.last_seen_at = seen_at
        if seen_at > self.since:
            self.since = seen_at
            self._due, self._due_is_exact = seen_at + self._deadline.least, False
        # One that waited somewhere for long fills history, and revives nobody.
        if self._open is not None and self._deadline.before_maintenance(seen_at) > received_at:
            self._close(seen_at)

    def end(self, at: int) -> None:
        """End the session: nothing is expected of it until it is registered again. A pause ends with it."""
        self._look(at)
        self._close(at)
        self.live = self.paused = False

    def pause(self, at: int) -> None:
        """Judge it no more."""
        self._look(at)
        self._close(at)
        self.paused = True

    def resume(self, at: int) -> None:
        """Judge it again; its clock starts anew."""
        self.paused = False
        self._restart(max(at, self.since))

    def begin_degraded(self, since: int, flagged_at: int) -> None:
        """Let it be degraded from the start, as it was when what is played back begins."""
        self._open = Silence(since, flagged_at)
        self.silences.append(self._open)

    def finish(self, at: int) -> None:
        """Judge it as of the end of what is known."""
        self._look(at)

    def _restart(self, since: int) -> None:
        self.since = since
        self._due, self._due_is_exact = since, False

    def _look(self, at: int) -> None:
        judged = self.live and not self.paused and self._open is None
        if judged and self.due < at:
            self._open = Silence(self.since, self.due)
            self.silences.append(self._open)

    def _close(self, at: int) -> None:
        if self._open is not None:
            self._open.ended_at = max(at, self._open.flagged_at)
            self._open = None
