"""Random draws of a simulated fleet: numbers, spans of time, and the faults of the pipeline."""

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
    """A span of time, in milliseconds since 1970; its end isn't part of it."""

    start: int
    end: int


class Spans:
    """Spans of time, merged where they touch, for a million fast look-ups."""

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
        """Yield the merged spans in order."""
        return map(Span, self._starts, self._ends)

    def __add__(self, other: Iterable[Span]) -> Spans:
        """Merge with other spans."""
        return Spans([*self, *other])

    def end_of(self, moment: int) -> int | None:
        """Return the end of the span that contains a time; None if no span does."""
        place = bisect_right(self._starts, moment) - 1
        return self._ends[place] if place >= 0 and moment < self._ends[place] else None


class Faults:
    """Spans in which parts of the pipeline are down."""

    def __init__(self, draw: random.Random, time: Span) -> None:
        self._draw = draw
        self.asleep = self._spans(time, 3)
        self.redis = self._spans(time, 4)
        self.workers = self._spans(time, 4)
        self.sweeper = self._spans(time, 5)
        self.database = self._spans(time, 3)
        count = draw.randint(0, 60 * self._weeks(time))
        self.stalls = draw_spans(draw, time, count, 700, 29 * SECOND)
        """When Redis stalls for some seconds."""
        self.no_redis = self.asleep + self.redis + self.stalls
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
        """Return the time itself, or, if a span contains it, a time soon after that span."""
        while (end := missing.end_of(moment)) is not None:
            moment = end + round(self._draw.uniform(0.05, pause) * SECOND)
        return moment


def draw_spans(draw: random.Random, time: Span, number: int, shortest: int, longest: int) -> Spans:
    """Draw spans that begin within a time, most of them short."""
    spans = []
    for _ in range(number):
        start = draw.randrange(time.start, time.end)
        spans.append(Span(start, start + log_uniform(draw, shortest, longest)))
    return Spans(spans)


def log_uniform(draw: random.Random, low: int, high: int) -> int:
    """Draw a number, as often between 1 and 10 as between 10 and 100."""
    return round(exp(draw.uniform(log(low), log(high))))


def pick(draw: random.Random, low: int, high: int) -> int:
    """Draw a number from `low` to `high`; faster than randint, as a plan draws a hundred thousand."""
    return low + int(draw.random() * (high - low + 1))


def weighted(draw: random.Random, weights: Mapping[T, int]) -> T:
    """Draw one of several values by their weights."""
    return draw.choices(list(weights), list(weights.values()))[0]


def chance(draw: random.Random, share: float) -> bool:
    """Draw True in this share of all cases."""
    return draw.random() < share
