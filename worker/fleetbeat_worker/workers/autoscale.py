"""Autoscaling: how many workers a pool should have, derived from the lag. Pure: no clock and no Redis.

The number doubles while the lag is above a few seconds and isn't falling fast, and falls one by one after the lag was
low for a while. Between the two thresholds it stays. There are never more workers than batches to store, and no further
ones for a minute when the last ones didn't help: SQLite, for example, has one writer at a time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

BEHIND_SECONDS = 3.0
"""A lag above this calls for more workers."""
QUIET_SECONDS = 1.0
"""A lag below this lets the number of workers fall."""
GROW_EVERY_SECONDS = 3.0
"""How long new workers have to show their effect before more are added."""
SHRINK_EVERY_SECONDS = 30.0
"""How long the lag must have been low before one worker is removed, and again before the next."""
SOON_SECONDS = 5.0
"""A lag that falls to zero within this time calls for no more workers."""
HELPFUL_GROWTH = 1.1
"""After a growth the rate must be this many times as high, or the new workers don't help."""
TRY_AGAIN_SECONDS = 60.0
"""How long after workers that didn't help further ones are tried."""

MAX_WORKERS = 64
"""Of one pool."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """The minimum and the maximum number of workers; equal when the number is fixed."""

    minimum: int
    maximum: int

    def __post_init__(self) -> None:
        """Refuse numbers that are not a range. Raises ValueError."""
        if not 0 <= self.minimum <= self.maximum <= MAX_WORKERS:
            message = f"{self.minimum} to {self.maximum} workers is not a range within 0 and {MAX_WORKERS}"
            raise ValueError(message)

    @property
    def are_fixed(self) -> bool:
        """Whether the number doesn't depend on the lag."""
        return self.minimum == self.maximum

    def clamp(self, count: int) -> int:
        """Derive the number within the bounds that is nearest to a count."""
        return min(self.maximum, max(self.minimum, count))

    def __str__(self) -> str:
        return str(self.minimum) if self.are_fixed else f"{self.minimum}:{self.maximum}"

    @staticmethod
    def parse(text: str) -> Bounds:
        """Read `4` or `1:8`. Raises ValueError."""
        minimum, _, maximum = text.partition(":")
        return Bounds(int(minimum), int(maximum or minimum))


@dataclass(frozen=True, slots=True)
class Load:
    """The load of the pipeline at one time."""

    lag_seconds: float
    batches: int
    """The backlog in full batches."""
    drain_rate: float | None
    """Messages stored a second, over the last seconds; None when it isn't known."""
    jobs_wait_without_worker: bool = False
    """Whether jobs wait and no pool has a worker: no sweep would run."""


@dataclass(frozen=True, slots=True)
class Scaling:
    """The current number of workers, and what the next decision needs of the past. Times are monotonic."""

    count: int
    changed_at: float
    """When the number last changed."""
    quiet_since: float | None = None
    """Since when the lag has been low; None while it isn't."""
    lag_at_change: float = 0.0
    rate_before_growth: float | None = None
    """Messages stored a second before the last growth; None when the rate is not to be compared."""


def scale(scaling: Scaling, load: Load, bounds: Bounds, now: float) -> Scaling:
    """Derive how many workers there should be from now on: `count` of the result."""
    quiet = load.lag_seconds < QUIET_SECONDS
    quiet_since = (now if scaling.quiet_since is None else scaling.quiet_since) if quiet else None
    scaling = replace(scaling, quiet_since=quiet_since)
    changed = replace(scaling, changed_at=now, rate_before_growth=None)
    if (count := bounds.clamp(scaling.count)) != scaling.count:
        return replace(changed, count=count)
    if load.jobs_wait_without_worker and not scaling.count and bounds.maximum:
        return replace(changed, count=1, quiet_since=None, lag_at_change=load.lag_seconds)
    if load.lag_seconds > BEHIND_SECONDS and now - scaling.changed_at >= GROW_EVERY_SECONDS:
        return _grow(scaling, load, bounds, now)
    if quiet_since is not None and now - max(quiet_since, scaling.changed_at) >= SHRINK_EVERY_SECONDS:
        return replace(changed, count=bounds.clamp(scaling.count - 1), lag_at_change=load.lag_seconds)
    return scaling


def _grow(scaling: Scaling, load: Load, bounds: Bounds, now: float) -> Scaling:
    since = now - scaling.changed_at
    lag_falls_by = (scaling.lag_at_change - load.lag_seconds) / since
    if lag_falls_by > 0 and load.lag_seconds / lag_falls_by < SOON_SECONDS:
        return scaling
    if not _last_growth_helped(scaling, load) and since < TRY_AGAIN_SECONDS:
        return scaling
    count = bounds.clamp(min(max(1, scaling.count * 2), max(scaling.count, load.batches, 1)))
    if count == scaling.count:
        return scaling
    return replace(
        scaling, count=count, changed_at=now, lag_at_change=load.lag_seconds, rate_before_growth=load.drain_rate
    )


def _last_growth_helped(scaling: Scaling, load: Load) -> bool:
    if not scaling.rate_before_growth or load.drain_rate is None:
        return True
    return load.drain_rate >= scaling.rate_before_growth * HELPFUL_GROWTH
