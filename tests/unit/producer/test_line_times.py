from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import takewhile
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from croniter import croniter

from fleetbeat_producer.cron.line_times import line_fields, machine_zones, schedule_of_interval
from fleetbeat_shared.errors import SettingsError
from fleetbeat_shared.schedules import is_slot, slots_after

NOW = datetime(2026, 11, 24, 12, 30, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
NIGHTS = [
    datetime(2027, 3, 13, 18, tzinfo=UTC),  # New York goes on
    datetime(2027, 3, 27, 18, tzinfo=UTC),  # Berlin
    datetime(2027, 4, 3, 6, tzinfo=UTC),  # Lord Howe goes back, by half an hour
    datetime(2027, 10, 2, 6, tzinfo=UTC),  # … and on
    datetime(2027, 10, 30, 18, tzinfo=UTC),  # Berlin goes back
    datetime(2027, 11, 6, 18, tzinfo=UTC),  # New York
]


@pytest.mark.parametrize(
    ("seconds", "schedule"),
    [
        (60, "* * * * *"),
        (300, "*/5 * * * *"),
        (1800, "*/30 * * * *"),
        (3600, "0 * * * *"),
        (21_600, "0 */6 * * *"),
        (86_400, "0 0 * * *"),
    ],
)
def test_an_even_interval_becomes_a_schedule(seconds: float, schedule: str) -> None:
    """An interval that divides an hour or a day becomes an expression whose slots are that far apart."""
    assert schedule_of_interval(seconds) == schedule
    slots = slots_after(schedule, "UTC", NOW)
    first, second = next(slots), next(slots)
    assert second - first == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("seconds", "nearest"), [(30, "1m"), (420, "6m"), (5400, "1h"), (25_200, "6h"), (172_800, "1d")]
)
def test_an_uneven_interval_is_refused_with_the_nearest(seconds: float, nearest: str) -> None:
    """An interval that a crontab can't express evenly raises a ValueError that names the nearest possible one."""
    with pytest.raises(ValueError, match=f'every = "{nearest}", or cron = '):
        schedule_of_interval(seconds)


@pytest.mark.parametrize(
    ("schedule", "zone", "machine", "fields", "must_look"),
    [
        ("15 8 * * *", "UTC", "Etc/UTC", "15 8 * * *", False),
        ("15 8 * * *", "Africa/Abidjan", "UTC", "15 8 * * *", False),
        ("15 8 * * *", "Europe/Berlin", "Europe/Paris", "15 8 * * *", False),
        ("15 8 * * *", "Europe/Berlin", "UTC", "15 * * * *", True),
        ("0 */6 * * *", "UTC", "Europe/Berlin", "0 * * * *", True),
        ("15 8 * * *", "Asia/Kolkata", "UTC", "45 * * * *", True),
        ("15 8 * * *", "Australia/Lord_Howe", "UTC", "15,45 * * * *", True),
        ("30 2 * * *", "Europe/Berlin", "UTC", "0,30 * * * *", True),  # 02:30 comes at 03:00 in one night
        # The same offsets but for some hours of two nights.
        ("0 1 * * *", "America/New_York", "America/Havana", "0 * * * *", True),
        ("*/5 * * * *", "Asia/Kolkata", "UTC", "*/5 * * * *", False),
        ("*/20 * * * *", "Asia/Kolkata", "UTC", "10,30,50 * * * *", True),
        ("* * * * *", "Asia/Kolkata", "UTC", "* * * * *", False),
        ("* * * * mon", "Asia/Kolkata", "UTC", "* * * * *", True),
        ("0 8 * * mon-fri", "UTC", "UTC", "0 8 * * mon-fri", False),
        # What cron doesn't know, or reads in another way than we do.
        ("0 8 L * *", "UTC", "UTC", "0 * * * *", True),
        ("0 8 */2 * 1", "UTC", "UTC", "0 * * * *", True),
    ],
)
def test_a_line_checks_the_time_where_zones_differ(
    schedule: str, zone: str, machine: str, fields: str, *, must_look: bool
) -> None:
    """The schedule's own fields where both zones agree for years, otherwise its minutes at each hour."""
    assert line_fields(schedule, zone, [ZoneInfo(machine)], NOW) == (fields, must_look)


def test_a_line_suits_every_zone_that_cron_may_use() -> None:
    """With TZ set, which cron may not know, the line starts at the minutes of both zones."""
    zones = [ZoneInfo("UTC"), ZoneInfo("Asia/Kolkata")]
    assert line_fields("15 8 * * *", "UTC", zones, NOW) == ("15,45 * * * *", True)


@pytest.mark.parametrize("schedule", ["15 8 * * *", "30 2 * * *", "0 */6 * * *", "30 1-3 * * sun"])
@pytest.mark.parametrize(
    ("zone", "machine"),
    [
        ("Europe/Berlin", "UTC"),
        ("UTC", "Europe/Berlin"),
        ("Europe/Berlin", "America/New_York"),
        ("America/New_York", "Asia/Kolkata"),
        ("Australia/Lord_Howe", "Europe/Berlin"),
    ],
)
def test_heartbeats_match_the_slots_in_every_zone(schedule: str, zone: str, machine: str) -> None:
    """In the nights in which either clock changes, the line sends at each slot, and at no other minute."""
    fields, must_look = line_fields(schedule, zone, [ZoneInfo(machine)], NOW)
    assert must_look
    started = set(croniter(fields).expanded[0])
    for begin in NIGHTS:
        minutes = [begin + MINUTE * number for number in range(24 * 60)]
        sent = [
            minute
            for minute in minutes
            if minute.astimezone(ZoneInfo(machine)).minute in started and is_slot(schedule, zone, minute)
        ]
        slots = slots_after(schedule, zone, begin - MINUTE)
        assert sent == list(takewhile(minutes[-1].__ge__, slots))


def test_machine_zones_come_from_localtime_and_tz(tmp_path: Path) -> None:
    """/etc/localtime gives one, also as a copy without a name; TZ may give another; without either it is UTC."""
    localtime = tmp_path / "localtime"
    assert machine_zones({}, localtime) == [UTC]
    localtime.write_text("no zone")
    assert machine_zones({}, localtime) == [UTC]
    localtime.write_bytes(_zone_file("Europe/Berlin"))
    (berlin,) = machine_zones({"TZ": ""}, localtime)
    assert line_fields("15 8 * * *", "Europe/Berlin", [berlin], NOW) == ("15 8 * * *", False)
    assert machine_zones({"TZ": ":Asia/Kolkata"}, localtime)[1:] == [ZoneInfo("Asia/Kolkata")]
    (_, named) = machine_zones({"TZ": f":{localtime}"}, localtime)
    assert line_fields("15 8 * * *", "Europe/Berlin", [berlin, named], NOW) == ("15 8 * * *", False)


@pytest.mark.parametrize("name", ["CET-1CEST,M3.5.0,M10.5.0/3", "/nowhere/zone"])
def test_an_unknown_tz_is_reported(tmp_path: Path, name: str) -> None:
    """A TZ that is not a known zone is reported in a sentence that quotes it."""
    with pytest.raises(SettingsError, match=r"^TZ is '.*', which is not a time zone\. Unset it"):
        machine_zones({"TZ": name}, tmp_path / "localtime")


def _zone_file(name: str) -> bytes:
    from importlib.resources import files

    area, _, city = name.partition("/")
    return files("tzdata.zoneinfo").joinpath(area, city).read_bytes()
