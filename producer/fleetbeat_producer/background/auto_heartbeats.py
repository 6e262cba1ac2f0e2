"""The beats that sessions send by themselves: they say that the process lives, and no more."""

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
"""How much later than it is due a beat may be sent, so that the beats of many sessions go together."""
IDLE_SECONDS = 3600.0
"""How long nothing is due when there is no session."""


@dataclass(slots=True)
class _Rhythm:
    session_id: UUID
    interval_seconds: float
    is_over: bool = False


class Beats:
    """The sessions of a process that beat by themselves, ten thousand of them as well as one.

    Any thread may add and remove; one alone takes. There is no lock, which a signal might leave held: each change of
    the dictionary and of the heap is one step of the interpreter's.
    """

    def __init__(self) -> None:
        self._rhythms: dict[UUID, _Rhythm] = {}
        self._due: list[tuple[float, int, _Rhythm]] = []
        self._numbers = itertools.count()

    def add(self, session_id: UUID, interval_seconds: float, now: float) -> None:
        """Let a session beat, on its interval from now on (monotonic clock).

        The first beat comes at a moment of the first interval that is left to chance: sessions that start together
        shall not beat together for ever.
        """
        rhythm = _Rhythm(session_id, interval_seconds)
        self.remove(session_id)
        self._rhythms[session_id] = rhythm
        self._push(now + interval_seconds * random.random(), rhythm)  # noqa: S311 - it spreads, it hides nothing

    def remove(self, session_id: UUID) -> None:
        """Let a session beat no more."""
        rhythm = self._rhythms.pop(session_id, None)
        if rhythm is not None:
            rhythm.is_over = True

    def take_due(self, now: float) -> list[Heartbeat]:
        """Return a heartbeat of each session whose beat is due."""
        beats = []
        while self._due and self._due[0][0] <= now:
            due, _, rhythm = heapq.heappop(self._due)
            if rhythm.is_over:
                continue
            beats.append(new_heartbeat(rhythm.session_id))
            # After a sleep there is one beat for all that were missed, and each session keeps its own moment in the
            # interval: beats that once came together would do so for ever.
            missed = (now - due) // rhythm.interval_seconds
            self._push(due + (missed + 1) * rhythm.interval_seconds, rhythm)
        return beats

    def seconds_until_due(self, now: float) -> float:
        """Return how long nothing need be done about what is due."""
        return max(0.0, self._due[0][0] + GATHER_SECONDS - now) if self._due else IDLE_SECONDS

    def _push(self, due: float, rhythm: _Rhythm) -> None:
        heapq.heappush(self._due, (due, next(self._numbers), rhythm))
