"""Automatic heartbeats of sessions: they report that the process is alive, and nothing else."""

from __future__ import annotations

import heapq
import itertools
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fleetbeat_producer.compose import new_heartbeat

if TYPE_CHECKING:
    from uuid import UUID

    from fleetbeat_shared.messages import Heartbeat

GATHER_SECONDS = 0.05
"""How much later than due a heartbeat may be sent, so that those of many sessions go together."""
IDLE_SECONDS = 3600.0
"""The pause when no session has automatic heartbeats."""


@dataclass(slots=True)
class _Timer:
    session_id: UUID
    interval_seconds: float
    is_cancelled: bool = False


class AutoHeartbeats:
    """The sessions of a process that send heartbeats automatically. It scales to ten thousand.

    Any thread may add and remove; only one takes. There is no lock, which a signal handler could find held: each change
    of the dictionary and of the heap is one step of the interpreter.
    """

    def __init__(self) -> None:
        self._timers: dict[UUID, _Timer] = {}
        self._due: list[tuple[float, int, _Timer]] = []
        self._numbers = itertools.count()

    def add(self, session_id: UUID, interval_seconds: float, now: float) -> None:
        """Send heartbeats for a session on its interval, from now on (monotonic clock).

        The first is due at a random time within the first interval: sessions that start together should not send
        together for ever.
        """
        timer = _Timer(session_id, interval_seconds)
        self.remove(session_id)
        self._timers[session_id] = timer
        self._push(now + interval_seconds * random.random(), timer)  # noqa: S311 - it spreads load, it hides nothing

    def remove(self, session_id: UUID) -> None:
        """Send no more heartbeats for a session."""
        timer = self._timers.pop(session_id, None)
        if timer is not None:
            timer.is_cancelled = True

    def take_due(self, now: float) -> list[Heartbeat]:
        """Compose a heartbeat for each session that is due."""
        heartbeats = []
        while self._due and self._due[0][0] <= now:
            due, _, timer = heapq.heappop(self._due)
            if timer.is_cancelled:
                continue
            heartbeats.append(new_heartbeat(timer.session_id))
            # After a sleep of the machine one heartbeat stands for all that were missed. Each session keeps its offset
            # in the interval: otherwise all would be due at the same time from then on.
            missed = (now - due) // timer.interval_seconds
            self._push(due + (missed + 1) * timer.interval_seconds, timer)
        return heartbeats

    def seconds_until_due(self, now: float) -> float:
        """Compute how long to wait for the next heartbeat that is due."""
        return max(0.0, self._due[0][0] + GATHER_SECONDS - now) if self._due else IDLE_SECONDS

    def _push(self, due: float, timer: _Timer) -> None:
        heapq.heappush(self._due, (due, next(self._numbers), timer))
