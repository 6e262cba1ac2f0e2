"""How many workers a pool should have, from the lag: a pure decision, without a clock and without Redis.

It grows quickly, to the double each time, while the lag is above a few seconds and isn't falling fast, and shrinks
slowly, one by one, after it was quiet for a while. Between the two it leaves things alone. It asks for no more workers
than there are batches to store, and for no further ones when the last ones didn't help: SQLite, say, takes one writer
at a time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

BEHIND_SECONDS = 3.0
"""A lag above this calls for more workers."""
QUIET_SECONDS = 1.0
"""A lag below this is none."""
GROW_EVERY_SECONDS = 3.0
"""New workers get this long to show what they do, before there are more."""
SHRINK_EVERY_SECONDS = 30.0
"""How long it must have been quiet before there is one less, and again before the next."""
SOON_SECONDS = 5.0
"""A lag that will be gone within this time calls for nobody."""
HELPS = 1.1
"""More workers must store this many times as much, or they don't help."""
TRY_AGAIN_SECONDS = 60.0
"""After this time it is tried once more whether further ones would help."""

MOST_WORKERS = 64
"""What one pool may have."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """The least and the most workers, both inclusive; equal when the number is fixed."""

    least: int
    most: int

    def __post_init__(self) -> None:
        """Refuse what is no range. Raises ValueError."""
        if not 0 <= self.least <= self.most <= MOST_WORKERS:
            message = f"workers from {self.least} to {self.most} are no range within 0 and {MOST_WORKERS}"
            raise ValueError(message)

    @property
    def are_fixed(self) -> bool:
        """Whether the lag has no say."""
        return self.least == self.most

    def clamp(self, count: int) -> int:
        """Return the number within the bounds that is next to another."""
        return min(self.most, max(self.least, count))

    def __str__(self) -> str:
        return str(self.least) if self.are_fixed else f"{self.least}:{self.most}"

    @staticmethod
    def parse(text: str) -> Bounds:
        """Read `4` or `1:8`. Raises ValueError."""
        least, _, most = text.partition(":")
        return Bounds(int(least), int(most or least))


@dataclass(frozen=True, slots=True)
class Load:
    """How the pipeline does at one moment."""

    lag_seconds: float
    batches: int
    """How many full batches the backlog is."""
    drain_rate: float | None
    """Messages stored a second, lately; None when it isn't known."""
    is_abandoned: bool = False
    """Whether jobs wait, and no worker is there anywhere: a sweep would never come."""


@dataclass(frozen=True, slots=True)
class Course:
    """What was decided, and what the next decision must know of the past."""

    count: int
    changed_at: float
    """When the number last changed, by a clock that never goes back."""
    quiet_since: float | None = None
    lag_then: float = 0.0
    """The lag at the last change."""
    rate_then: float | None = None
    """What was stored a second before the last growth; None when nothing is to be compared."""


def decide(course: Course, load: Load, bounds: Bounds, now: float) -> Course:
    """Return the course from now on; `count` is how many workers there should be."""
    quiet = load.lag_seconds < QUIET_SECONDS
    course = replace(course, quiet_since=(now if course.quiet_since is None else course.quiet_since) if quiet else None)
    if (count := bounds.clamp(course.count)) != course.count:
        return replace(course, count=count, changed_at=now, rate_then=None)
    if load.is_abandoned and not course.count and bounds.most:
        return replace(course, count=1, changed_at=now, quiet_since=None, lag_then=load.lag_seconds, rate_then=None)
    if load.lag_seconds > BEHIND_SECONDS and now - course.changed_at >= GROW_EVERY_SECONDS:
        return _grown(course, load, bounds, now)
    if course.quiet_since is not None and now - max(course.quiet_since, course.changed_at) >= SHRINK_EVERY_SECONDS:
        count = bounds.clamp(course.count - 1)
        return replace(course, count=count, changed_at=now, lag_then=load.lag_seconds, rate_then=None)
    return course


def _grown(course: Course, load: Load, bounds: Bounds, now: float) -> Course:
    since = now - course.changed_at
    falls = (course.lag_then - load.lag_seconds) / since
    if falls > 0 and load.lag_seconds / falls < SOON_SECONDS:
        return course
    if _last_growth_was_in_vain(course, load) and since < TRY_AGAIN_SECONDS:
        return course
    count = bounds.clamp(min(max(1, course.count * 2), max(course.count, load.batches, 1)))
    if count == course.count:
        return course
    return replace(course, count=count, changed_at=now, lag_then=load.lag_seconds, rate_then=load.drain_rate)


def _last_growth_was_in_vain(course: Course, load: Load) -> bool:
    if not course.rate_then or load.drain_rate is None:
        return False
    return load.drain_rate < course.rate_then * HELPS
