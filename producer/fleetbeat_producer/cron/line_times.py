"""Times of crontab lines, so that an agent's heartbeats follow its own time zone, whatever zone cron uses."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from fleetbeat_shared.errors import SettingsError
from fleetbeat_shared.schedules import find_time_zone, slots_after
from fleetbeat_shared.time_text import format_duration

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

LOCALTIME = Path("/etc/localtime")
YEARS_AHEAD = 10
"""How far ahead two zones are compared."""

_MINUTES = [minutes for minutes in range(1, 60) if 60 % minutes == 0]
_HOURS = [hours for hours in range(1, 24) if 24 % hours == 0]
_EVEN = {
    **{60 * minutes: f"*/{minutes} * * * *" for minutes in _MINUTES},
    **{3600 * hours: f"0 */{hours} * * *" for hours in _HOURS},
    60: "* * * * *",
    3600: "0 * * * *",
    86_400: "0 0 * * *",
}
"""The intervals, in seconds, that a crontab can express evenly, and their cron expressions."""


def schedule_of_interval(interval_seconds: float) -> str:
    """Find the cron expression for an interval.

    Raises ValueError, with the nearest possible interval, when no expression has even gaps of this length.
    """
    if interval_seconds in _EVEN:
        return _EVEN[int(interval_seconds)]
    nearest = min(_EVEN, key=lambda seconds: abs(seconds - interval_seconds))
    message = (
        f"a crontab can't express {format_duration(interval_seconds)} evenly; "
        f'use the nearest that it can, every = "{format_duration(nearest)}", or cron = …'
    )
    raise ValueError(message)


def machine_zones(environment: Mapping[str, str], localtime: Path = LOCALTIME) -> list[tzinfo]:
    """Find the time zones that cron may use: the machine's own, and that of the variable TZ.

    Whether TZ is set for cron can't be known here, so a line must be right in both.

    Raises SettingsError when TZ is not a time zone.
    """
    try:
        zones = [_read_zone(localtime)]
    except (OSError, ValueError):
        zones = [UTC]  # as in the C library
    if name := environment.get("TZ", "").removeprefix(":"):
        try:
            zones.append(_read_zone(Path(name)) if name.startswith("/") else find_time_zone(name))
        except (OSError, ValueError) as error:
            message = f"TZ is {name!r}, which is not a time zone. Unset it, or set it to the zone of cron, such as UTC."
            raise SettingsError(message) from error
    return zones


def _read_zone(path: Path) -> tzinfo:
    with path.open("rb") as file:
        return ZoneInfo.from_file(file)


def line_fields(schedule: str, time_zone: str, machine: Sequence[tzinfo], now: datetime) -> tuple[str, bool]:
    """Build the five fields of the line for a schedule in a zone; and tell whether the call must check the time itself.

    Where the machine's zone agrees with the schedule's zone for the next years, these are the schedule's own fields.
    Elsewhere the line starts each hour, at every minute in which a slot may fall. Its hour is `*`, as cron delays
    lines of fixed hours when the clock of the machine is changed. `now` is aware.
    """
    zone = find_time_zone(time_zone)
    changes = list(_offset_changes(zone, now))
    shifts = {
        _minutes_ahead(each, moment) - _minutes_ahead(zone, moment)
        for each in machine
        for moment in (now, *changes, *_offset_changes(each, now))
    }
    minutes = _minutes(schedule)
    by_shift = [{(minute + shift) % 60 for minute in minutes} for shift in shifts]
    is_hourly = schedule.endswith(" * * * *")
    if _is_standard(schedule) and (shifts == {0} or (is_hourly and all(shifted == minutes for shifted in by_shift))):
        return schedule, False
    started = set().union(*by_shift)
    # A slot that the zone's clock skips falls on the time of the change, and that is another minute than its own.
    for change in changes:
        if next(slots_after(schedule, time_zone, change - timedelta(seconds=1))) == change:
            started |= {change.astimezone(each).minute for each in machine}
    minute = "*" if len(started) == 60 else ",".join(map(str, sorted(started)))  # noqa: PLR2004 - all minutes
    return f"{minute} * * * *", True


def _offset_changes(zone: tzinfo, now: datetime) -> Iterator[datetime]:
    """Yield the times in the next years, to the minute, at which a zone's offset from UTC changes."""
    day = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    for _ in range(366 * YEARS_AHEAD):
        before, after = day, day + timedelta(days=1)
        offset = _minutes_ahead(zone, before)
        if _minutes_ahead(zone, after) != offset:
            while after - before > timedelta(minutes=1):
                middle = before + (after - before) // 2
                middle -= timedelta(seconds=middle.second, microseconds=middle.microsecond)
                before, after = (middle, after) if _minutes_ahead(zone, middle) == offset else (before, middle)
            yield after
        day += timedelta(days=1)


def _minutes_ahead(zone: tzinfo, moment: datetime) -> int:
    """Compute how far a zone's clock is ahead of UTC."""
    return (moment.astimezone(zone).utcoffset() or timedelta()) // timedelta(minutes=1)


def _minutes(schedule: str) -> set[int]:
    from croniter import croniter

    found = croniter(schedule).expanded[0]
    return set(range(60)) if found == ["*"] else set(found)


_ITEM = r"(?:\d+|[a-z]{3})(?:-(?:\d+|[a-z]{3})(?:/\d+)?)?"
_FIELD = re.compile(rf"\*(?:/\d+)?|{_ITEM}(?:,{_ITEM})*", re.ASCII | re.IGNORECASE)


def _is_standard(schedule: str) -> bool:
    """Tell whether every cron reads an expression as croniter does, which knows more than they do.

    Given a day and a day of the week, cron requires both if one of them begins with `*`, and otherwise either.
    """
    fields = schedule.split(" ")
    day, weekday = fields[2], fields[4]
    is_ambiguous = "*" not in {day, weekday} and (day.startswith("*") or weekday.startswith("*"))
    return not is_ambiguous and all(map(_FIELD.fullmatch, fields))
