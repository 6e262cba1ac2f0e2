"""Wall clock: the slots of a cron schedule, found by reading the local time of each minute.

Slow and simple on purpose: it shares no code with the rules that it checks.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

from simulation.draw import DAY
from simulation.model import Plan, SimulatedAgent

_MINUTE = timedelta(minutes=1)


def slots_of(agent: SimulatedAgent, plan: Plan) -> tuple[int, ...]:
    """List the slots of an agent's schedule, from a day before the plan to long after it."""
    return slots_around(agent.schedule or "", agent.time_zone or "", plan)


def slots_around(schedule: str, time_zone: str, plan: Plan) -> tuple[int, ...]:
    """List the slots of a schedule, from a day before a plan to long after it."""
    return _slots(schedule, time_zone, plan.start - DAY, plan.end + 12 * DAY)


@lru_cache(maxsize=512)
def _slots(schedule: str, time_zone: str, start: int, end: int) -> tuple[int, ...]:
    """List the slots of a schedule within a time.

    A fixed hour that the clock skips is moved to the end of the skipped time; one that occurs twice counts once.
    """
    minute, hour, _, _, weekday = schedule.split(" ")
    minutes, hours, weekdays = _values(minute, 60), _values(hour, 24), _values(weekday, 7)
    has_fixed_hours = not hour.startswith("*")
    return tuple(
        at
        for at, local, skipped, is_second in _local_minutes(time_zone, start, end)
        if not (has_fixed_hours and is_second)
        and any(
            wall.minute in minutes and wall.hour in hours and wall.isoweekday() % 7 in weekdays
            for wall in (local, *(skipped if has_fixed_hours else ()))
        )
    )


@lru_cache(maxsize=32)
def _local_minutes(time_zone: str, start: int, end: int) -> list[tuple[int, datetime, tuple[datetime, ...], bool]]:
    """List each minute: its time, its local time, the local times skipped before it, and whether it occurs again."""
    zone, found = ZoneInfo(time_zone), []
    moment = datetime.fromtimestamp(start / 1000, UTC).replace(second=0, microsecond=0)
    before = (moment - _MINUTE).astimezone(zone).replace(tzinfo=None)
    while moment.timestamp() * 1000 <= end:
        aware = moment.astimezone(zone)
        local, skipped = aware.replace(tzinfo=None), []
        while before + _MINUTE < local:
            before += _MINUTE
            skipped.append(before)
        before = local
        found.append((round(moment.timestamp() * 1000), local, tuple(skipped), bool(aware.fold)))
        moment += _MINUTE
    return found


def _values(text: str, count: int) -> set[int]:
    """List the values of one field of a cron expression."""
    found: set[int] = set()
    for part in text.split(","):
        span, _, step = part.partition("/")
        first, _, last = span.partition("-")
        low, high = (0, count - 1) if span == "*" else (int(first), int(last or first))
        found |= set(range(low, high + 1, int(step or 1)))
    return found
