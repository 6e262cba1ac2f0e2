from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import takewhile

import pytest
from cron_slots import EVERY_HOUR, SOME_HOURS, count_slowly, expression_of
from hypothesis import given, settings, strategies as st

from fleetbeat_worker.rules.maintenance_windows import (
    Window,
    WindowRule,
    last_end,
    merged,
    next_start,
    running,
    windows,
    windows_of,
)

NOON = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def at(minutes: float) -> datetime:
    return NOON + minutes * MINUTE


def spans(*ends: tuple[float, float | None]) -> list[Window]:
    return [Window(at(start), None if end is None else at(end)) for start, end in ends]


@settings(max_examples=60, deadline=None)
@given(EVERY_HOUR | SOME_HOURS, st.integers(0, 600), st.integers(1, 300), st.integers(0, 600))
def test_recurring_windows_are_those_that_a_slow_count_finds(
    case: tuple[tuple[str, datetime], set[int], set[int] | None], begins: int, length: int, span: int
) -> None:
    """Windows of a schedule equal a count over each minute of the wall clock, also where the clocks change."""
    (time_zone, evening), minutes, hours = case
    since = evening + begins * MINUTE
    until = since + span * MINUTE
    length_time = length * MINUTE
    rule = WindowRule(
        evening - timedelta(days=9), None, expression_of(minutes, hours), time_zone, length_time.total_seconds()
    )
    slots = count_slowly(minutes, hours, time_zone, since - length_time, until)
    expected = [Window(slot, slot + length_time) for slot in slots]
    assert list(windows(rule, since, until)) == expected
    minute = since
    while minute <= until:
        covered = any(slot <= minute < slot + length_time for slot in slots)
        assert (running(windows_of([rule], minute, minute), minute) is not None) == covered
        minute += 7 * MINUTE


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (WindowRule(at(0), at(60)), [(0, 60)]),
        (WindowRule(at(0)), [(0, None)]),
        (WindowRule(at(0), at(60), ended_at=at(30)), [(0, 30)]),
        (WindowRule(at(0), ended_at=at(30)), [(0, 30)]),
        (WindowRule(at(50), at(60), ended_at=at(30)), []),
        (WindowRule(at(0), at(60), ended_at=at(90)), [(0, 60)]),
        (WindowRule(at(121), at(130)), []),
    ],
)
def test_a_single_window_ends_at_its_time_or_when_somebody_ends_it(
    rule: WindowRule, expected: list[tuple[float, float | None]]
) -> None:
    """The earlier end counts, and what was ended before it began never was."""
    assert list(windows(rule, at(0), at(120))) == spans(*expected)


HOURLY = WindowRule(at(0), schedule="0 * * * *", time_zone="UTC", duration_seconds=600)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (HOURLY, [(0, 10), (60, 70), (120, 130)]),
        (replace(HOURLY, starts_at=at(1)), [(60, 70), (120, 130)]),
        (replace(HOURLY, ends_at=at(60)), [(0, 10)]),
        (replace(HOURLY, ended_at=at(65)), [(0, 10), (60, 65)]),
        (replace(HOURLY, cut_at=at(65)), [(0, 10), (60, 65), (120, 130)]),
        (replace(HOURLY, cut_at=at(60)), [(0, 10), (120, 130)]),
        (replace(HOURLY, cut_at=at(30)), [(0, 10), (60, 70), (120, 130)]),
    ],
)
def test_recurring_windows_can_be_ended_for_good_or_once(
    rule: WindowRule, expected: list[tuple[float, float | None]]
) -> None:
    """Of a schedule that began at noon: no window before its start or after its end, and a cut ends one window only."""
    assert list(windows(rule, at(-1), at(125))) == spans(*expected)


def test_a_window_holds_from_its_start_until_before_its_end() -> None:
    """At its end it is over, and that end is the last one that is known."""
    rule = WindowRule(at(0), at(60))
    found = {minute: running(windows_of([rule], at(-5), at(minute)), at(minute)) for minute in (-1, 0, 59, 60)}
    assert [minute for minute, window in found.items() if window] == [0, 59]
    assert last_end(windows_of([rule], at(-5), at(59)), at(59)) is None
    assert last_end(windows_of([rule], at(-5), at(60)), at(60)) == at(60)


def test_windows_that_touch_are_one() -> None:
    """Overlapping windows, and those that follow without a gap, are merged with their reasons; others stay apart."""
    found = [Window(at(50), at(70), "b"), Window(at(0), at(50), "a"), Window(at(71), at(80)), Window(at(5), at(9), "a")]
    assert merged(found) == [Window(at(0), at(70), "a; b"), Window(at(71), at(80))]
    assert merged([Window(at(0), None), Window(at(5), at(9))]) == spans((0, None))


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (WindowRule(at(10), at(60)), 10),
        (WindowRule(at(0), at(60)), None),
        (HOURLY, 60),
        (replace(HOURLY, starts_at=at(60)), 60),
        (replace(HOURLY, ends_at=at(60)), None),
        (replace(HOURLY, ended_at=at(1)), None),
    ],
)
def test_when_a_window_comes_next(rule: WindowRule, expected: float | None) -> None:
    """What is yet to begin after five minutes past noon, unless it was ended for good."""
    assert next_start(rule, at(5)) == (None if expected is None else at(expected))


def test_a_night_that_is_an_hour_longer_has_one_window() -> None:
    """A window at 02:30 in the night in which clocks go back comes once, and lasts its real hour."""
    rule = WindowRule(
        datetime(2024, 10, 20, tzinfo=UTC), None, "30 2 * * *", "Europe/Berlin", timedelta(hours=1).total_seconds()
    )
    night = datetime(2024, 10, 26, 22, tzinfo=UTC)
    found = takewhile(lambda window: window.starts_at < night + timedelta(hours=8), windows(rule, night, at(0)))
    first = datetime(2024, 10, 27, 0, 30, tzinfo=UTC)
    assert list(found) == [Window(first, first + timedelta(hours=1))]
