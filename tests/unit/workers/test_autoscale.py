from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, strategies as st

from fleetbeat_worker.workers.autoscale import (
    GROW_EVERY_SECONDS,
    MOST_WORKERS,
    SHRINK_EVERY_SECONDS,
    TRY_AGAIN_SECONDS,
    Bounds,
    Course,
    Load,
    decide,
)

BOUNDS = Bounds(1, 8)
BEHIND = Load(lag_seconds=10.0, batches=100, drain_rate=None)
BETWEEN = Load(lag_seconds=2.0, batches=1, drain_rate=None)
QUIET = Load(lag_seconds=0.1, batches=0, drain_rate=None)


def counts(course: Course, load: Load, seconds: int, *, start: float = 100.0, rising: float = 0.0) -> list[int]:
    """Decide once a second; return each number of workers that came up, in order."""
    found = [course.count]
    for second in range(seconds):
        now = replace(load, lag_seconds=load.lag_seconds + second * rising)
        course = decide(course, now, BOUNDS, start + second)
        if course.count != found[-1]:
            found.append(course.count)
    return found


def test_it_grows_quickly_and_within_bounds() -> None:
    """A lag that rises doubles the workers every few seconds, up to the most that are allowed."""
    assert counts(Course(1, 0.0), BEHIND, 20, rising=1.0) == [1, 2, 4, 8]


def test_it_shrinks_slowly() -> None:
    """After a quiet time there is one worker less, and another one after as long again; never too few."""
    assert counts(Course(8, 0.0), QUIET, int(SHRINK_EVERY_SECONDS) * 3 + 1) == [8, 7, 6, 5]
    assert counts(Course(2, 0.0), QUIET, int(SHRINK_EVERY_SECONDS) * 4) == [2, 1]


def test_between_the_thresholds_nothing_changes() -> None:
    """A small lag calls for no worker more and none less, and one second of it begins the quiet time anew."""
    assert counts(Course(3, 0.0), BETWEEN, 200) == [3]
    course = Course(3, 0.0)
    for second in range(200):
        course = decide(course, BETWEEN if second % 20 == 0 else QUIET, BOUNDS, 100.0 + second)
    assert course.count == 3


def test_no_more_workers_than_batches() -> None:
    """Old messages that fit in one batch need one worker."""
    assert counts(Course(1, 0.0), replace(BEHIND, batches=1), 60, rising=1.0) == [1]
    assert counts(Course(1, 0.0), replace(BEHIND, batches=3), 60, rising=1.0) == [1, 2, 3]
    assert decide(Course(0, 0.0), replace(BEHIND, batches=0), Bounds(0, 4), 100.0).count == 1


def test_a_lag_that_is_nearly_gone_calls_for_nobody() -> None:
    """As long as the lag falls so fast that it ends within seconds, there are enough workers."""
    course = Course(2, 100.0, lag_then=30.0)
    assert decide(course, replace(BEHIND, lag_seconds=6.0), BOUNDS, 108.0).count == 2
    assert decide(course, replace(BEHIND, lag_seconds=29.0), BOUNDS, 108.0).count == 4


def test_workers_that_did_not_help_are_not_followed_by_others() -> None:
    """If twice as many stored no more, it stays at that for a minute; if they stored more, it goes on."""
    grown = decide(Course(1, 0.0), replace(BEHIND, drain_rate=1000.0), BOUNDS, 100.0)
    assert grown.count == 2
    now = 100.0 + GROW_EVERY_SECONDS
    later = replace(BEHIND, lag_seconds=20.0)
    assert decide(grown, replace(later, drain_rate=1010.0), BOUNDS, now).count == 2
    assert decide(grown, replace(later, drain_rate=1010.0), BOUNDS, 100.0 + TRY_AGAIN_SECONDS).count == 4
    assert decide(grown, replace(later, drain_rate=1900.0), BOUNDS, now).count == 4


def test_a_pool_without_a_worker_has_one_when_nobody_else_sweeps() -> None:
    """Without any message, a job that waits and that no worker will ever take calls for one, where one may be."""
    quiet = Load(0.0, 0, None, is_abandoned=True)
    assert decide(Course(0, 0.0), quiet, Bounds(0, 4), 0.5).count == 1
    assert decide(Course(0, 0.0), replace(quiet, is_abandoned=False), Bounds(0, 4), 100.0).count == 0
    assert decide(Course(0, 0.0), quiet, Bounds(0, 0), 100.0).count == 0


loads = st.builds(
    Load,
    lag_seconds=st.floats(0, 1e6),
    batches=st.integers(0, 10**6),
    drain_rate=st.none() | st.floats(0, 1e6),
    is_abandoned=st.booleans(),
)


@given(st.lists(loads, max_size=30), st.integers(0, MOST_WORKERS), st.tuples(st.integers(0, 64), st.integers(0, 64)))
def test_the_bounds_hold_whatever_happens(course_of: list[Load], count: int, ends: tuple[int, int]) -> None:
    """From the first decision on there are never more or fewer workers than allowed."""
    bounds = Bounds(min(ends), max(ends))
    course = Course(count, 0.0)
    for second, load in enumerate(course_of):
        course = decide(course, load, bounds, float(second))
        assert bounds.least <= course.count <= bounds.most


def test_bounds_as_text() -> None:
    """`4` and `1:8` are read and written; what is no range is refused."""
    assert [str(Bounds.parse(text)) for text in ("4", "1:8", "0:64", "3:3")] == ["4", "1:8", "0:64", "3"]
    for text in ("", "x", "8:1", "-1:2", "1:65", "1:2:3", "1.5"):
        with pytest.raises(ValueError, match=r"range|invalid"):
            Bounds.parse(text)
