"""Simulated Redis: what a sweep reads of the inbox and of the pulse."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque

from fleetbeat_worker.broker.inbox import Entry, Horizon, known_by
from fleetbeat_worker.broker.pulse import GAP_MILLISECONDS, Pulse
from fleetbeat_worker.rules.spans import from_milliseconds
from simulation.draw import HOUR
from simulation.model import Arrival, Plan
from simulation.plan import PULSE_PERIOD

_GAPS_KEPT = 24 * HOUR
"""For how long a gap is returned; no two sweeps are further apart."""


class SimulatedInbox:
    """The stream: entries that arrived and are not acknowledged yet."""

    def __init__(self, plan: Plan) -> None:
        self._clock = plan.clock
        self._arrivals = iter(plan.arrivals)
        self._next = next(self._arrivals, None)
        self._held: deque[Arrival] = deque()
        self._removed = sorted(each.removed_at for each in plan.arrivals if each.removed_at is not None)
        self._arrived = 0

    def horizon(self, moment: int) -> Horizon:
        """Read what `Inbox.horizon` reads; times come in order."""
        while self._next is not None and self._next.received_at <= moment:
            self._held.append(self._next)
            self._next = next(self._arrivals, None)
            self._arrived += 1
        while self._held and self._held[0].removed_at is not None and self._held[0].removed_at <= moment:
            self._held.popleft()
        now = self._clock.at(moment)
        oldest = known_by(Entry(self._held[0].entry_id, b"").milliseconds, now) if self._held else now
        backlog = self._arrived - bisect_right(self._removed, moment)
        return Horizon(from_milliseconds(now), None if oldest is None else from_milliseconds(oldest), backlog)


class SimulatedPulse:
    """The pulse: written twice a second while a pool controller and Redis run."""

    def __init__(self, plan: Plan) -> None:
        self._clock = clock = plan.clock
        self._starts = [plan.start, *(gap.end for gap in plan.pulse_gaps)]
        self._pulse_gaps = plan.pulse_gaps
        shown = [(gap.end, clock.at(gap.start), clock.at(gap.end)) for gap in plan.pulse_gaps]
        long = [(at, (last + PULSE_PERIOD, then)) for at, last, then in shown if then - last > GAP_MILLISECONDS]
        self._gaps = [gap for _, gap in long]
        self._known_from = [at for at, _ in long]

    def read(self, moment: int) -> Pulse:
        """Read what `read_pulse` reads."""
        place = bisect_right(self._starts, moment) - 1
        last = self._starts[place] + (moment - self._starts[place]) // PULSE_PERIOD * PULSE_PERIOD
        if place < len(self._pulse_gaps):
            last = min(last, self._pulse_gaps[place].start)
        known = slice(bisect_right(self._known_from, moment - _GAPS_KEPT), bisect_right(self._known_from, moment))
        return Pulse(self._clock.at(last), tuple(self._gaps[known]))
