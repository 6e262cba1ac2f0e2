"""Deadlines under outages and maintenance, against a count second by second."""

from __future__ import annotations

from hypothesis import given, strategies as st

from fleetbeat_worker.rules.deadlines import DeadlineRule, Unwatched
from fleetbeat_worker.rules.liveness import Promise
from fleetbeat_worker.rules.spans import Span, to_milliseconds
from simulated import at

NOON = to_milliseconds(at(0))
DAY = 86_400_000
HOUR = 3_600_000
_SPANS = st.lists(st.tuples(st.integers(0, 300), st.integers(1, 60)), max_size=6).map(
    lambda found: [(start, start + length) for start, length in found]
)


def promise(allowed: int) -> Promise:
    """Return a promise of which one interval may be missed: so many milliseconds, without grace."""
    return Promise(allowed / 1000, None, None, 0.0, missed_limit=1)


def count_slowly(since: int, allowed: int, outages: list[Span], windows: list[Span]) -> int:
    """Return the deadline by looking at every millisecond: the whole time once more at the first window's end."""
    now, left, met = since, allowed, False
    while True:
        in_window = any(start <= now < end for start, end in windows)
        if not left and not (in_window and not met):
            return now
        if in_window and not met:
            met = True
            while any(start <= now < end or start == now for start, end in windows):
                now += 1
            left = allowed
            continue
        unwatched = in_window or any(start <= now < end for start, end in outages)
        left -= not unwatched
        now += 1


@given(st.integers(0, 100), st.integers(1, 150), _SPANS, _SPANS)
def test_nothing_counts_that_lies_in_a_window(
    since: int, allowed: int, outages: list[Span], windows: list[Span]
) -> None:
    """An agent has its whole time outside of windows and outages, and after the first window once more."""
    rule = DeadlineRule(promise(allowed), 1, Unwatched(outages, windows))
    start, due = rule.clock(since)
    assert due == rule(since) == count_slowly(since, allowed, outages, windows)
    assert due >= rule.before_maintenance(since) >= since + rule.least
    assert not any(begin < due < end for begin, end in windows)
    assert start == since or start in {end for _, end in windows}


def test_a_window_each_night_hides_no_agent() -> None:
    """One that beats once a day is flagged three nights after its death, on a schedule after its second slot."""
    nights = [(NOON + 15 * HOUR + day * DAY, NOON + 16 * HOUR + day * DAY) for day in range(60)]
    daily = DeadlineRule(Promise(86_400.0, None, None, 60.0), 2, Unwatched((), nights))
    assert daily(NOON) == NOON + 16 * HOUR + 2 * DAY + 60_000 + 2 * HOUR
    at_8 = DeadlineRule(Promise(None, "15 8 * * *", "UTC", 60.0), 2, Unwatched((), nights))
    assert at_8(NOON) == to_milliseconds(at(0)) + 2 * DAY - 3 * HOUR - 44 * 60_000 + HOUR
    monthly = DeadlineRule(Promise(31 * 86_400.0, None, None, 60.0), 2, Unwatched((), nights * 2))
    assert monthly(NOON) < NOON + 70 * DAY


def test_a_slot_in_a_window_is_no_miss() -> None:
    """A job that cron would have started in the window is expected at its next time, also where one miss is enough."""
    nightly = Promise(None, "0 3 * * *", "UTC", 60.0, missed_limit=1)
    window = (NOON + 14 * HOUR, NOON + 16 * HOUR)
    assert DeadlineRule(nightly, 2, Unwatched((), [window]))(NOON) == NOON + 15 * HOUR + DAY + 60_000


def test_who_was_silent_for_its_whole_time_before_a_window_has_no_more() -> None:
    """A deadline that passed before the window began stays where it was."""
    assert DeadlineRule(promise(20), 1, Unwatched((), [(21, 50)]))(0) == 20
    assert DeadlineRule(promise(20), 1, Unwatched((), [(20, 50)]))(0) == 70


def test_a_window_makes_no_deadline_of_a_schedule_earlier() -> None:
    """Both clocks come to the same slots; what nobody could hear before the window counts, with it and without it."""
    daily = Promise(None, "0 3 * * *", "UTC", 60.0)
    gap, window = (NOON + HOUR, NOON + HOUR + 436_000), (NOON + 2 * HOUR, NOON + 3 * HOUR)
    due = NOON + 15 * HOUR + DAY + 60_000 + 436_000
    assert DeadlineRule(daily, 2, Unwatched([gap]))(NOON) == due
    assert DeadlineRule(daily, 2, Unwatched([gap], [window])).clock(NOON) == (NOON, due)
