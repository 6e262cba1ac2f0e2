"""The pulse of a simulated Redis: written twice a second, as long as a steward and Redis are there."""

from __future__ import annotations

import random
from bisect import bisect_right

from fleetbeat_worker.broker.pulse import GAP_MILLISECONDS, PULSE_SECONDS, Pulse
from simulation.draw import HOUR, SECOND, Span, Spans, pick
from simulation.model import Clock

_PERIOD = round(PULSE_SECONDS * SECOND)
_KEPT = 24 * HOUR
"""For how long a gap is shown: no two sweeps are farther apart."""


def draw_stops(draw: random.Random, start: int, missing: Spans) -> list[Span]:
    """Return the pairs of pulses between which there was none when one was due: the last one, and the next one."""
    stops, first = [], start
    for span in missing:
        last = first + (span.start - first) // _PERIOD * _PERIOD
        # What Redis didn't take while it stood still it takes at once, and a steward that starts has time.
        first = span.end + pick(draw, 1, 20 if span.end - span.start < 30 * SECOND else 500)
        stops.append(Span(last, first))
    return stops


class Pulses:
    """What Redis knows of the pulse."""

    def __init__(self, start: int, stops: list[Span], clock: Clock) -> None:
        self._clock = clock
        self._firsts = [start, *(stop.end for stop in stops)]
        self._stops = stops
        shown = [(following, clock.at(last), clock.at(following)) for last, following in stops]
        gaps = [(at, (last + _PERIOD, then)) for at, last, then in shown if then - last > GAP_MILLISECONDS]
        self._gaps = [gap for _, gap in gaps]
        self._ends = [at for at, _ in gaps]

    def at(self, moment: int) -> Pulse:
        """Return what is known at a moment."""
        place = bisect_right(self._firsts, moment) - 1
        last = self._firsts[place] + (moment - self._firsts[place]) // _PERIOD * _PERIOD
        if place < len(self._stops):
            last = min(last, self._stops[place].start)
        known = slice(bisect_right(self._ends, moment - _KEPT), bisect_right(self._ends, moment))
        return Pulse(self._clock.at(last), tuple(self._gaps[known]))
