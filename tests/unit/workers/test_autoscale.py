from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, strategies as st

from fleetbeat_worker.workers.autoscale import (
    GROW_EVERY_SECONDS,
    MAX_WORKERS,
    SHRINK_EVERY_SECONDS,
    TRY_AGAIN_SECONDS,
    Bounds,
    Load,
    Scaling,
    scale,
)

BOUNDS = Bounds(1, 8)
BEHIND = Load(lag_seconds=10.0, batches=100, drain_rate=None)
BETWEEN = Load(lag_seconds=2.0, batches=1, drain_rate=None)
QUIET = Load(lag_seconds=0.1, batches=0, drain_rate=None)


def counts(scaling: Scaling, load: Load, seconds: int, *, start: float = 100.0, rising: float = 0.0) -> list[int]:
    """Decide once a second; return each number of workers that came up, in order."""
    found = [scaling.count]
    for second in range(seconds):
        now = replace(load, lag_seconds=load.lag_seconds + second * rising)
        scaling = scale(scaling, now, BOUNDS, start + second)
        if scaling.count != found[-1]:
            found.append(scaling.count)
    return found


def test_it_grows_quickly_and_within_bounds() -> None:
    """A lag that rises doubles the workers every few seconds, up to the most that are allowed."""
    assert counts(Scaling(1, 0.0), BEHIND, 20, rising=1.0) == [1, 2, 4, 8]


def test_it_shrinks_slowly() -> None:
    """After a quiet time there is one worker less, and another one after as long again; never too few."""
    assert counts(Scaling(8, 0.0), QUIET, int(SHRINK_EVERY_SECONDS) * 3 + 1) == [8, 7, 6, 5]
    assert counts(Scaling(2, 0.0), QUIET, int(SHRINK_EVERY_SECONDS) * 4) == [2, 1]


def test_between_the_thresholds_nothing_changes() -> None:
    """A small lag calls for no worker more and none less, and one second of it begins the quiet time again."""
    assert counts(Scaling(3, 0.0), BETWEEN, 200) == [3]
    scaling = Scaling(3, 0.0)
    for second in range(200):
        scaling = scale(scaling, BETWEEN if second % 20 == 0 else QUIET, BOUNDS, 100.0 + second)
    assert scaling.count == 3


def test_no_more_workers_than_batches() -> None:
    """Old messages that fit in one batch need one worker."""
    assert counts(Scaling(1, 0.0), replace(BEHIND, batches=1), 60, rising=1.0) == [1]
    assert counts(Scaling(1, 0.0), replace(BEHIND, batches=3), 60, rising=1.0) == [1, 2, 3]
    assert scale(Scaling(0, 0.0), replace(BEHIND, batches=0), Bounds(0, 4), 100.0).count == 1


def test_a_lag_that_is_nearly_gone_calls_for_no_more_workers() -> None:
    """As long as the lag falls so fast that it ends within seconds, no workers are added."""
    scaling = Scaling(2, 100.0, lag_at_change=30.0)
    assert scale(scaling, replace(BEHIND, lag_seconds=6.0), BOUNDS, 108.0).count == 2
    assert scale(scaling, replace(BEHIND, lag_seconds=29.0), BOUNDS, 108.0).count == 4


def test_workers_that_did_not_help_delay_further_ones() -> None:
    """If twice as many stored no more, it stays at that for a minute; if they stored more, it goes on."""
    grown = scale(Scaling(1, 0.0), replace(BEHIND, drain_rate=1000.0), BOUNDS, 100.0)
    assert grown.count == 2
    now = 100.0 + GROW_EVERY_SECONDS
    later = replace(BEHIND, lag_seconds=20.0)
    assert scale(grown, replace(later, drain_rate=1010.0), BOUNDS, now).count == 2
    assert scale(grown, replace(later, drain_rate=1010.0), BOUNDS, 100.0 + TRY_AGAIN_SECONDS).count == 4
    assert scale(grown, replace(later, drain_rate=1900.0), BOUNDS, now).count == 4


def test_a_pool_without_a_worker_starts_one_when_no_other_pool_has_any() -> None:
    """Without any message, a job that no worker will ever take calls for one, if the bounds allow it."""
    quiet = Load(0.0, 0, None, jobs_wait_without_worker=True)
    assert scale(Scaling(0, 0.0), quiet, Bounds(0, 4), 0.5).count == 1
    assert scale(Scaling(0, 0.0), replace(quiet, jobs_wait_without_worker=False), Bounds(0, 4), 100.0).count == 0
    assert scale(Scaling(0, 0.0), quiet, Bounds(0, 0), 100.0).count == 0


loads = st.builds(
    Load,
    lag_seconds=st.floats(0, 1e6),
    batches=st.integers(0, 10**6),
    drain_rate=st.none() | st.floats(0, 1e6),
    jobs_wait_without_worker=st.booleans(),
)


@given(st.lists(loads, max_size=30), st.integers(0, MAX_WORKERS), st.tuples(st.integers(0, 64), st.integers(0, 64)))
def test_the_bounds_hold_whatever_happens(loads_in_turn: list[Load], count: int, ends: tuple[int, int]) -> None:
    """From the first decision on there are never more or fewer workers than allowed."""
    bounds = Bounds(min(ends), max(ends))
    scaling = Scaling(count, 0.0)
    for second, load in enumerate(loads_in_turn):
        scaling = scale(scaling, load, bounds, float(second))
        assert bounds.minimum <= scaling.count <= bounds.maximum


def test_bounds_as_text() -> None:
    """`4` and `1:8` are read and written; other text is refused."""
    assert [str(Bounds.parse(text)) for text in ("4", "1:8", "0:64", "3:3")] == ["4", "1:8", "0:64", "3"]
    for text in ("", "x", "8:1", "-1:2", "1:65", "1:2:3", "1.5"):
        with pytest.raises(ValueError, match=r"range|invalid"):
            Bounds.parse(text)
