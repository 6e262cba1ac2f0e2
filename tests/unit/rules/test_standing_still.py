"""Fleets that beat all the time, and a Redis that stands still now and then: whoever beats is never flagged."""

from __future__ import annotations

import random
from collections.abc import Iterator
from heapq import heappop, heappush
from itertools import count, pairwise
from uuid import UUID

import pytest
from sqlalchemy import Engine

from fleetbeat_worker.broker.pulse import GAP_MILLISECONDS, PULSE_SECONDS, Pulse
from fleetbeat_worker.rules.spans import merge, to_milliseconds
from helpers import events
from simulated import Simulation, at

LASTS = 150.0
SWEEP = 5.0
DIES_AT = 60.0


class Place:
    """A Redis that stands still at some times, and what its pulse leaves."""

    def __init__(self, draw: random.Random) -> None:
        starts = (draw.uniform(5, LASTS) for _ in range(draw.randint(1, 5)))
        lengths = (draw.choice((0.7, 1.0, 1.2, 2, 3, 5, 8, 13, 20, 28, 29.9, 34)) for _ in count())
        self.still = merge((round(start * 1000), round((start + next(lengths)) * 1000)) for start in starts)
        self._pulses = list(self._beat(draw))

    def back(self, when: float) -> float:
        """Return the moment, or the one at which it runs on again."""
        for start, end in self.still:
            if start <= when * 1000 < end:
                return end / 1000
        return when

    def _beat(self, draw: random.Random) -> Iterator[int]:
        when = 0.0
        while when < LASTS:
            yield to_milliseconds(at(when))
            when = self.back(when + PULSE_SECONDS) + draw.uniform(0, 0.02)

    def pulse(self, when: float) -> Pulse:
        """Return what is known of the pulse at a moment."""
        now = to_milliseconds(at(when))
        found = [pulse for pulse in self._pulses if pulse <= now]
        pairs = pairwise(found)
        gaps = [(last + 500, pulse) for last, pulse in pairs if pulse - last > GAP_MILLISECONDS]
        return Pulse(found[-1], tuple(gaps))


def beats_of(draw: random.Random, interval: float, until: float, place: Place) -> Iterator[tuple[float, float]]:
    """Yield when each heartbeat is there, and how long it had waited: an agent tries again after half an interval."""
    made, away_until = draw.uniform(0.1, interval), 0.0
    while made < until:
        reached = place.back(made)
        if reached > made and reached > away_until:
            away_until = reached + draw.uniform(0, min(interval / 2, 2))
        there = max(made, away_until if reached > made or made < away_until else made) + draw.uniform(0.001, 0.05)
        yield there, there - made
        made += interval * draw.uniform(0.9, 1.0)


@pytest.mark.parametrize("seed", range(6))
def test_who_beats_is_never_flagged_and_who_died_is(memory: Engine, seed: int) -> None:
    """Agents of 1 to 30 s, and stretches of 0.7 to 34 s in which nothing gets through; the dead are flagged in time."""
    draw = random.Random(seed)  # noqa: S311 - the same plan for the same seed, no secret
    place, fleet = Place(draw), Simulation(memory)
    todo: list[tuple[float, int, UUID | None, float]] = []
    number = count()
    due: dict[str, float] = {}
    for interval in (1.0, 2.0, 3.0, 5.0, 10.0, 30.0):
        for name, until in ((f"well {interval:g}", LASTS), (f"dead {interval:g}", DIES_AT)):
            session = fleet.register(name, 0, interval_seconds=interval, grace_seconds=max(1.0, interval * 0.05))
            for there, waited in beats_of(draw, interval, until, place):
                heappush(todo, (there, next(number), session, waited))
        still_after = sum(end - max(start, DIES_AT * 1000) for start, end in place.still if end > DIES_AT * 1000) / 1000
        due[f"dead {interval:g}"] = DIES_AT + 2 * interval + max(1.0, interval * 0.05) + still_after
    when = 0.5
    while when < LASTS:
        heappush(todo, (when, next(number), None, 0.0))
        when = place.back(when + SWEEP) + draw.uniform(0.0, 0.5)
    while todo:
        when, _, who, waited = heappop(todo)
        if who is None:
            fleet.sweep(when, pulse=place.pulse(when))
        else:
            fleet.beat(who, when, waited=waited if waited > 1 else 0.0)
    flagged = {event.agent_name: event.occurred_at for event in events(memory, "degraded")}
    assert [name for name in flagged if name.startswith("well")] == []
    late = GAP_MILLISECONDS / 1000 + SWEEP + 3
    for name, moment in due.items():
        if moment + late < LASTS:
            assert flagged[name] <= at(moment + late), place.still
