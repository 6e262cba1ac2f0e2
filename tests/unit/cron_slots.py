"""Schedules drawn for tests, and their slots counted minute by minute, as an oracle."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from hypothesis import strategies as st

MINUTE = timedelta(minutes=1)
NIGHTS = [
    ("UTC", datetime(2024, 3, 30, 18, tzinfo=UTC)),
    ("Asia/Kolkata", datetime(2024, 3, 30, 18, tzinfo=UTC)),
    ("Europe/Berlin", datetime(2024, 3, 30, 18, tzinfo=UTC)),  # clocks go from 2:00 to 3:00
    ("America/New_York", datetime(2024, 3, 10, 0, tzinfo=UTC)),
]
LONG_NIGHTS = [
    ("Europe/Berlin", datetime(2024, 10, 26, 18, tzinfo=UTC)),  # clocks go from 3:00 back to 2:00
    ("America/New_York", datetime(2024, 11, 3, 0, tzinfo=UTC)),
]


def count_slowly(
    minutes: set[int], hours: set[int] | None, time_zone: str, start: datetime, end: datetime
) -> list[datetime]:
    """Look at each minute's wall clock. A fixed hour that the clock skips comes when the clock goes on."""
    zone, found = ZoneInfo(time_zone), []
    moment = start.replace(second=0, microsecond=0) + MINUTE
    while moment <= end:
        wall = moment.astimezone(zone).replace(tzinfo=None)
        walls = [wall]
        skipped = (moment - MINUTE).astimezone(zone).replace(tzinfo=None) + MINUTE
        while hours is not None and skipped < wall:
            walls.append(skipped)
            skipped += MINUTE
        if any(each.minute in minutes and (hours is None or each.hour in hours) for each in walls):
            found.append(moment)
        moment += MINUTE
    return found


def expression_of(minutes: set[int], hours: set[int] | None) -> str:
    hour = "*" if hours is None else ",".join(map(str, sorted(hours)))
    return f"{','.join(map(str, sorted(minutes)))} {hour} * * *"


MINUTES = st.sets(st.integers(0, 59), min_size=1, max_size=4)
HOURS = st.sets(st.integers(0, 23), min_size=1, max_size=6)
EVERY_HOUR = st.tuples(st.sampled_from(NIGHTS + LONG_NIGHTS), MINUTES, st.none())
SOME_HOURS = st.tuples(st.sampled_from(NIGHTS), MINUTES, HOURS)
