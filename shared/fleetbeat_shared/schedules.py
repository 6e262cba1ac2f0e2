"""Cron schedules with time zones.

croniter is imported where it is used: an agent with a plain interval never pays for it.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

if TYPE_CHECKING:
    from collections.abc import Iterator

_NICKNAMES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_FIELDS = (
    ("minute", "0 to 59"),
    ("hour", "0 to 23"),
    ("day", "1 to 31"),
    ("month", "1 to 12 or jan to dec"),
    ("day of the week", "0 to 7 or sun to sat"),
)
"""The fields of an expression: name and allowed values."""


@lru_cache(maxsize=1024)
def find_time_zone(name: str) -> ZoneInfo:
    """Find the time zone with this IANA name.

    Raises ValueError when there is none.
    """
    try:
        return ZoneInfo(name)
    except (KeyError, OSError, ValueError) as error:
        message = f"{name!r} is not a time zone. Example: Europe/Berlin"
        raise ValueError(message) from error


def check_schedule(expression: str) -> str:
    """Normalise a cron expression to five fields with single spaces; nicknames such as `@daily` are expanded.

    Raises ValueError, with the wrong field, when it isn't one, or when its time never comes (30 February).
    """
    expression = " ".join(expression.split())
    expression = _NICKNAMES.get(expression.lower(), expression)
    problem = _find_problem(expression)
    if problem is not None:
        message = f"{expression!r} is not a cron expression: {problem}"
        raise ValueError(message)
    return expression


def _find_problem(expression: str) -> str | None:
    """Describe what is wrong with an expression; None if it is valid."""
    fields = expression.split(" ")
    if len(fields) != len(_FIELDS):
        return (
            "it needs five fields (minute, hour, day, month, day of the week), or one of @hourly, @daily and the like"
        )
    if re.search(r"\b[rh]\b", expression.lower()):
        return "R and H, which stand for random times, are not supported"
    if _is_valid(expression):
        return None
    for place, (field, (name, numbers)) in enumerate(zip(fields, _FIELDS, strict=True)):
        if not _is_valid(" ".join([*["*"] * place, field, *["*"] * (len(fields) - place - 1)])):
            return f"its {name} {field!r} can't be read; {numbers} is allowed, and *, lists, ranges and steps of them"
    return f"its time never comes, day {fields[2]!r} of month {fields[3]!r}"


def _is_valid(expression: str) -> bool:
    """Tell whether croniter can parse an expression and finds a time for it."""
    from croniter import CroniterError, croniter

    try:
        croniter(expression, datetime.now(UTC)).get_next(datetime)
    except (CroniterError, ValueError, TypeError, KeyError):
        return False
    return True


def slots_after(expression: str, time_zone: str, moment: datetime) -> Iterator[datetime]:
    """Yield the schedule's times after a moment (aware), as UTC, without end.

    When clocks go back, a time of day comes twice. As with cron, a schedule of fixed hours then has only the first of
    the two; one whose hours begin with `*` has both.
    """
    from croniter import croniter

    fixed_hours = not expression.split(" ")[1].startswith("*")
    slots = croniter(expression, moment.astimezone(find_time_zone(time_zone)))
    while True:
        slot = slots.get_next(datetime)
        if not (slot.fold and fixed_hours):
            yield slot.astimezone(UTC)


def is_slot(expression: str, time_zone: str, now: datetime) -> bool:
    """Tell whether one of the schedule's times falls into the minute of `now` (aware)."""
    minute = now.astimezone(UTC).replace(second=0, microsecond=0)
    return next(slots_after(expression, time_zone, minute - timedelta(seconds=1))) == minute
