from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from itertools import islice, takewhile
from zoneinfo import ZoneInfo

import pytest
from cron_slots import EVERY_HOUR, MINUTE, SOME_HOURS, count_slowly, expression_of
from hypothesis import given, settings, strategies as st

from fleetbeat_shared.schedules import check_schedule, find_time_zone, is_slot, slots_after


@settings(max_examples=60, deadline=None)
@given(EVERY_HOUR | SOME_HOURS, st.integers(0, 720 * 60))
def test_slots_match_a_count_of_every_minute(
    case: tuple[tuple[str, datetime], set[int], set[int] | None], seconds: int
) -> None:
    """Slots equal a count over every minute of the wall clock, also in the nights in which the clocks change."""
    (time_zone, evening), minutes, hours = case
    start = evening + timedelta(seconds=seconds)
    end = start + timedelta(hours=20)
    slots = takewhile(lambda slot: slot <= end, slots_after(expression_of(minutes, hours), time_zone, start))
    assert list(slots) == count_slowly(minutes, hours, time_zone, start, end)


def test_slots_are_after_the_moment_and_in_utc() -> None:
    """A slot isn't its own next one, and slots follow the zone's offset over the year."""
    winter, summer = datetime(2024, 1, 15, 7, 15, tzinfo=UTC), datetime(2024, 7, 15, 6, 15, tzinfo=UTC)
    for slot in (winter, summer):
        before = next(slots_after("15 8 * * *", "Europe/Berlin", slot - MINUTE))
        at = next(slots_after("15 8 * * *", "Europe/Berlin", slot))
        assert before == slot
        assert at == slot + timedelta(days=1)
        assert before.tzinfo is UTC


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("15 8 * * *", "15 8 * * *"),
        ("  */5   * * *  mon-fri ", "*/5 * * * mon-fri"),
        ("@daily", "0 0 * * *"),
        ("0 0 29 2 *", "0 0 29 2 *"),
    ],
)
def test_valid_schedules_are_normalised(expression: str, expected: str) -> None:
    """Five fields, names of days and the @ words are accepted."""
    assert check_schedule(expression) == expected


@pytest.mark.parametrize(
    "expression",
    [
        "",
        "* * * *",
        "* * * * * *",
        "60 * * * *",
        "* 24 * * *",
        "*/0 * * * *",
        "a b c d e",
        "0 0 30 2 *",
        "@reboot",
        "R * * * *",
        "H(0-5) * * * *",
    ],
)
def test_invalid_schedules_are_refused(expression: str) -> None:
    """Wrong fields, times that never come and random ones raise a ValueError that quotes the expression."""
    with pytest.raises(ValueError, match="is not a cron expression"):
        check_schedule(expression)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("61 * * * *", "its minute '61' can't be read; 0 to 59 is allowed"),
        ("0 24 * * *", "its hour '24' can't be read; 0 to 23 is allowed"),
        ("0 0 0 * *", "its day '0' can't be read; 1 to 31 is allowed"),
        ("0 0 1 13 *", "its month '13' can't be read; 1 to 12 or jan to dec is allowed"),
        ("0 0 * * fry", "its day of the week 'fry' can't be read; 0 to 7 or sun to sat is allowed"),
        ("0 0 31 2 *", "its time never comes, day '31' of month '2'"),
        ("0 0 *", "it needs five fields"),
    ],
)
def test_an_error_names_the_wrong_field(expression: str, expected: str) -> None:
    """The error says which of the five fields is wrong, and what it may hold."""
    with pytest.raises(ValueError, match=re.escape(f"{expression!r} is not a cron expression: {expected}")):
        check_schedule(expression)


@pytest.mark.parametrize("name", ["", "Mars/Olympus", "../../etc/passwd", "/etc/passwd", "a\x00b"])
def test_unknown_time_zones_are_refused(name: str) -> None:
    """A name that is not an IANA name raises a ValueError with an example."""
    with pytest.raises(ValueError, match="Europe/Berlin"):
        find_time_zone(name)


def test_a_doubled_hour_has_one_slot() -> None:
    """In the night when clocks go back, 02:30 comes twice; a schedule of fixed hours has only the first."""
    evening = datetime(2026, 10, 24, 20, tzinfo=UTC)
    slots = list(islice(slots_after("30 2 * * *", "Europe/Berlin", evening), 2))
    assert slots == [datetime(2026, 10, 25, 0, 30, tzinfo=UTC), datetime(2026, 10, 26, 1, 30, tzinfo=UTC)]


def test_an_hourly_schedule_has_both_doubled_hours() -> None:
    """A schedule of every hour has two slots in the doubled hour, an hour apart."""
    evening = datetime(2026, 10, 24, 23, 59, tzinfo=UTC)
    slots = list(islice(slots_after("0 * * * *", "Europe/Berlin", evening), 3))
    assert slots == [datetime(2026, 10, 25, hour, tzinfo=UTC) for hour in (0, 1, 2)]


def test_a_slot_lasts_its_minute() -> None:
    """It is a slot at any second of its minute, in the zone's summer and winter, and not a minute off."""
    for slot in (datetime(2026, 1, 15, 7, 15, tzinfo=UTC), datetime(2026, 7, 15, 6, 15, tzinfo=UTC)):
        asked = [slot, slot + timedelta(seconds=59.9), slot - timedelta(seconds=0.1), slot + MINUTE]
        assert [is_slot("15 8 * * *", "Europe/Berlin", now) for now in asked] == [True, True, False, False]
    assert is_slot("15 8 * * *", "UTC", datetime(2026, 1, 15, 9, 15, 30, tzinfo=ZoneInfo("Europe/Berlin")))


def test_slots_when_clocks_change() -> None:
    """A skipped 02:30 falls on the change, a doubled one on the first; a schedule of every hour has both."""
    spring, autumn = datetime(2026, 3, 29, tzinfo=UTC), datetime(2026, 10, 25, tzinfo=UTC)

    def slots(expression: str, midnight: datetime) -> list[str]:
        minutes = [midnight + MINUTE * number for number in range(180)]
        return [f"{minute:%H:%M}" for minute in minutes if is_slot(expression, "Europe/Berlin", minute)]

    assert slots("30 2 * * *", spring) == ["01:00"]
    assert slots("30 2 * * *", autumn) == ["00:30"]
    assert slots("30 * * * *", autumn) == ["00:30", "01:30", "02:30"]
