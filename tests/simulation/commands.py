"""What people ask for in a simulated fleet: pauses of agents, and maintenance of all of it."""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from simulation.draw import DAY, HOUR, MINUTE, Span, Troubles, chance, log_uniform, weighted

RECURRING = {"30 2 * * *": 3, "0 */6 * * *": 2, "15 8 * * *": 3}
"""Schedules of maintenance, each with how often it is chosen."""
ZONES = ("UTC", "Europe/Berlin", "America/New_York")


@dataclass(frozen=True, slots=True)
class Pause:
    """An agent that is silenced for a time."""

    agent: int
    at: int
    until: int | None
    resumed_at: int | None
    """When somebody ends it by hand; it may have ended before."""


@dataclass(frozen=True, slots=True)
class MaintenanceRule:
    """Maintenance: one window, or one at each slot of a schedule."""

    at: int
    """When it was asked for."""
    starts_at: int
    ends_at: int | None
    ended_at: int | None
    """When somebody ends it by hand, for good."""
    schedule: str | None = None
    time_zone: str | None = None
    duration_seconds: float | None = None


class Deed(IntEnum):
    """What somebody does."""

    PAUSE = 0
    RESUME = 1
    START_MAINTENANCE = 2
    END_MAINTENANCE = 3


class Command(NamedTuple):
    """What is done when, and to which of the plan's pauses or rules of maintenance."""

    at: int
    deed: Deed
    place: int


def commands(pauses: list[Pause], rules: list[MaintenanceRule]) -> list[Command]:
    """Return all that is done, in its order."""
    found = []
    for place, pause in enumerate(pauses):
        found.append(Command(pause.at, Deed.PAUSE, place))
        if pause.resumed_at is not None:
            found.append(Command(pause.resumed_at, Deed.RESUME, place))
    for place, rule in enumerate(rules):
        found.append(Command(rule.at, Deed.START_MAINTENANCE, place))
        if rule.ended_at is not None:
            found.append(Command(rule.ended_at, Deed.END_MAINTENANCE, place))
    return sorted(found)


def draw_pauses(draw: random.Random, agent: int, time: Span, troubles: Troubles) -> list[Pause]:
    """Return the pauses of an agent, which follow each other."""
    pauses: list[Pause] = []
    free_from = time.start
    for _ in range(draw.choice((0, 0, 0, 0, 1, 2))):
        at = troubles.after(draw.randrange(free_from, time.end), troubles.no_command)
        until = None if chance(draw, 0.3) else at + log_uniform(draw, MINUTE, 2 * DAY)
        resumed_at = None
        if chance(draw, 0.5 if until else 0.8):
            resumed_at = troubles.after(at + log_uniform(draw, MINUTE, 2 * DAY), troubles.no_command)
        pauses.append(Pause(agent, at, until, resumed_at))
        ends = [end for end in (until, resumed_at) if end is not None]
        free_from = max(ends, default=time.end) + HOUR
        if free_from >= time.end:
            break
    return pauses


def draw_maintenance(draw: random.Random, time: Span, troubles: Troubles) -> list[MaintenanceRule]:
    """Return the maintenance of the fleet; windows may overlap."""
    rules = []
    for _ in range(draw.choice((0, 0, 1, 2))):
        at = troubles.after(draw.randrange(time.start, time.end), troubles.no_command)
        starts_at = at if chance(draw, 0.5) else at + log_uniform(draw, MINUTE, 6 * HOUR)
        ends_at = starts_at + log_uniform(draw, 5 * MINUTE, 8 * HOUR) if chance(draw, 0.7) else None
        ended_at = None
        if ends_at is None or chance(draw, 0.2):
            ended_at = troubles.after(starts_at + log_uniform(draw, MINUTE, 6 * HOUR), troubles.no_command)
        rules.append(MaintenanceRule(at, starts_at, ends_at, ended_at))
    if chance(draw, 0.3):
        at = troubles.after(draw.randrange(time.start, time.end), troubles.no_command)
        ended_at = troubles.after(at + log_uniform(draw, HOUR, 7 * DAY), troubles.no_command)
        schedule, zone = weighted(draw, RECURRING), draw.choice(ZONES)
        length = round(log_uniform(draw, 5 * MINUTE, 3 * HOUR) / 1000)
        rules.append(MaintenanceRule(at, at, None, ended_at, schedule, zone, length))
    return rules
