"""Commands of users in a simulated fleet: pauses of agents, and maintenance of the whole fleet."""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from simulation.draw import DAY, HOUR, MINUTE, Faults, Span, chance, log_uniform, weighted

RECURRING = {"30 2 * * *": 3, "0 */6 * * *": 2, "15 8 * * *": 3}
"""Schedules of maintenance, each with its weight."""
ZONES = ("UTC", "Europe/Berlin", "America/New_York")


@dataclass(frozen=True, slots=True)
class Pause:
    """A pause of an agent."""

    agent: int
    at: int
    until: int | None
    resumed_at: int | None
    """When a user resumes the agent; the pause may have ended before."""


@dataclass(frozen=True, slots=True)
class MaintenanceRule:
    """Maintenance: one window, or one at each slot of a schedule."""

    at: int
    """When the command was given."""
    starts_at: int
    ends_at: int | None
    ended_at: int | None
    """When a user ends it for good."""
    schedule: str | None = None
    time_zone: str | None = None
    duration_seconds: float | None = None


class Action(IntEnum):
    """Kind of a command."""

    PAUSE = 0
    RESUME = 1
    START_MAINTENANCE = 2
    END_MAINTENANCE = 3


class Command(NamedTuple):
    """A command: its time, its kind, and the position of its pause or rule in the plan."""

    at: int
    action: Action
    position: int


def list_commands(pauses: list[Pause], rules: list[MaintenanceRule]) -> list[Command]:
    """List all commands of a plan in order."""
    found = []
    for position, pause in enumerate(pauses):
        found.append(Command(pause.at, Action.PAUSE, position))
        if pause.resumed_at is not None:
            found.append(Command(pause.resumed_at, Action.RESUME, position))
    for position, rule in enumerate(rules):
        found.append(Command(rule.at, Action.START_MAINTENANCE, position))
        if rule.ended_at is not None:
            found.append(Command(rule.ended_at, Action.END_MAINTENANCE, position))
    return sorted(found)


def draw_pauses(draw: random.Random, agent: int, time: Span, faults: Faults) -> list[Pause]:
    """Draw the pauses of an agent; they don't overlap."""
    pauses: list[Pause] = []
    free_from = time.start
    for _ in range(draw.choice((0, 0, 0, 0, 1, 2))):
        at = faults.after(draw.randrange(free_from, time.end), faults.no_command)
        until = None if chance(draw, 0.3) else at + log_uniform(draw, MINUTE, 2 * DAY)
        resumed_at = None
        if chance(draw, 0.5 if until else 0.8):
            resumed_at = faults.after(at + log_uniform(draw, MINUTE, 2 * DAY), faults.no_command)
        pauses.append(Pause(agent, at, until, resumed_at))
        ends = [end for end in (until, resumed_at) if end is not None]
        free_from = max(ends, default=time.end) + HOUR
        if free_from >= time.end:
            break
    return pauses


def draw_maintenance(draw: random.Random, time: Span, faults: Faults) -> list[MaintenanceRule]:
    """Draw the maintenance of the fleet; windows may overlap."""
    rules = []
    for _ in range(draw.choice((0, 0, 1, 2))):
        at = faults.after(draw.randrange(time.start, time.end), faults.no_command)
        starts_at = at if chance(draw, 0.5) else at + log_uniform(draw, MINUTE, 6 * HOUR)
        ends_at = starts_at + log_uniform(draw, 5 * MINUTE, 8 * HOUR) if chance(draw, 0.7) else None
        ended_at = None
        if ends_at is None or chance(draw, 0.2):
            ended_at = faults.after(starts_at + log_uniform(draw, MINUTE, 6 * HOUR), faults.no_command)
        rules.append(MaintenanceRule(at, starts_at, ends_at, ended_at))
    if chance(draw, 0.3):
        at = faults.after(draw.randrange(time.start, time.end), faults.no_command)
        ended_at = faults.after(at + log_uniform(draw, HOUR, 7 * DAY), faults.no_command)
        schedule, zone = weighted(draw, RECURRING), draw.choice(ZONES)
        length = round(log_uniform(draw, 5 * MINUTE, 3 * HOUR) / 1000)
        rules.append(MaintenanceRule(at, at, None, ended_at, schedule, zone, length))
    return rules
