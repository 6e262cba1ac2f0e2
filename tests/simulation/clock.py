"""Redis's clock in a simulated fleet: it is set back now and then, and goes on from there.

That it is set forward is a span in which nobody does anything. Ids of the stream don't go back with it: they stand
still until the clock has come to them again, or a sweep finds the inbox empty and makes it anew.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

from simulation.draw import HOUR, MINUTE, SECOND, Span, log_uniform
from simulation.model import Arrival, Clock, Step

_FOREVER = 1 << 62


def draw_steps(draw: random.Random, time: Span) -> list[Step]:
    """Return some steps back, as many of them short as long."""
    moments = (draw.randrange(time.start, time.end) for _ in range(draw.choice((1, 2, 3))))
    return [Step(moment, log_uniform(draw, SECOND, 6 * HOUR)) for moment in moments]


def number_entries(arrivals: Sequence[Arrival], clock: Clock, looks: Iterable[int]) -> None:
    """Give each arrival its place in the stream. `looks`: when sweeps were through."""
    last, sequence, held_until = -1, 0, 0
    times = iter(sorted(looks))
    look = next(times, _FOREVER)
    for arrival in arrivals:
        while look <= arrival.received_at:
            if held_until <= look and last > clock.at(look) + MINUTE:
                last = -1
            look = next(times, _FOREVER)
        now = clock.at(arrival.received_at)
        sequence = sequence + 1 if last >= now else 0
        last = max(last, now)
        arrival.entry_id = f"{last}-{sequence}"
        held_until = max(held_until, _FOREVER if arrival.removed_at is None else arrival.removed_at)
