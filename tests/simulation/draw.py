"""Drawing what happens in a simulated fleet: numbers, spans of time, and when parts of the pipeline aren't there."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from math import exp, log
from typing import NamedTuple, TypeVar

T = TypeVar("T")

SECOND = 1000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR


class Span(NamedTuple):
    """A time in which something isn't there."""

    start: int
    end: int


class Spans:
    """Times in which something isn't there, as one looks them up a million times."""

    def __init__(self, spans: Iterable[Span]) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        for start, end in sorted(spans):
            if self._ends and start <= self._ends[-1]:
                self._ends[-1] = max(end, self._ends[-1])
            else:
                self._starts.append(start)
                self._ends.append(end)

    def __iter__(self) -> Iterator[Span]:
        """Yield them in their order; none touches another."""
        return map(Span, self._starts, self._ends)

    def __add__(self, other: Iterable[Span]) -> Spans:
        """Return the times in which one or the other isn't there."""
        return Spans([*self, *other])

    def end_of(self, moment: int) -> int | None:
        """Return when the span ends that a moment lies in; None if it lies in none."""
        place = bisect_right(self._starts, moment) - 1
        return self._ends[place] if place >= 0 and moment < self._ends[place] else None


class Troubles:
    """When parts of the pipeline aren't there."""

    def __init__(self, draw: random.Random, time: Span) -> None:
        self._draw = draw
        self.asleep = self._spans(time, 3)
        self.redis = self._spans(time, 4)
        self.workers = self._spans(time, 4)
        self.sweeper = self._spans(time, 5)
        self.database = self._spans(time, 3)
        still = draw.randint(0, 60 * self._weeks(time))
        self.still = draw_spans(draw, time, still, 700, 29 * SECOND)
        """When Redis hears nobody for some seconds."""
        self.no_redis = self.asleep + self.redis + self.still
        self.no_pulse = self.no_redis + self.workers
        self.no_ingest = self.no_redis + self.workers + self.database
        self.no_sweep = self.no_ingest + self.sweeper
        self.no_commit = self.workers + self.database
        self.no_command = self.no_redis + self.database

    def _spans(self, time: Span, most: int) -> Spans:
        number = self._draw.randint(0, most * self._weeks(time))
        return draw_spans(self._draw, time, number, 10 * SECOND, 12 * HOUR)

    @staticmethod
    def _weeks(time: Span) -> int:
        return max(1, round((time.end - time.start) / (7 * DAY)))

    def after(self, moment: int, missing: Spans, pause: float = 3.0) -> int:
        """Return the moment, or one soon after the span that it lies in."""
        while (end := missing.end_of(moment)) is not None:
            moment = end + round(self._draw.uniform(0.05, pause) * SECOND)
        return moment


def draw_spans(draw: random.Random, time: Span, number: int, shortest: int, longest: int) -> Spans:
    """Return some spans of a time, most of them short."""
    spans = []
    for _ in range(number):
        start = draw.randrange(time.start, time.end)
        spans.append(Span(start, start + log_uniform(draw, shortest, longest)))
    return Spans(spans)


def log_uniform(draw: random.Random, low: int, high: int) -> int:
    """Return a number between two, as often between 1 and 10 as between 10 and 100."""
    return round(exp(draw.uniform(log(low), log(high))))


def pick(draw: random.Random, low: int, high: int) -> int:
    """Return a number from `low` to `high`; faster than randint, which is drawn here a hundred thousand times."""
    return low + int(draw.random() * (high - low + 1))


def weighted(draw: random.Random, weights: Mapping[T, int]) -> T:
    """Return one of some things, each as often as its weight says."""
    return draw.choices(list(weights), list(weights.values()))[0]


def chance(draw: random.Random, share: float) -> bool:
    """Return whether something happens that happens in this share of all cases."""
    return draw.random() < share
