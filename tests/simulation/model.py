"""Model of a simulated fleet: its agents, their heartbeats, the commits and sweeps of a plan, and its clock."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

from fleetbeat_shared.messages import Deregister, Heartbeat, Register
from fleetbeat_shared.redis_keys import stream_of
from simulation.commands import MaintenanceRule, Pause
from simulation.draw import (
    SECOND,
    Span,
    Spans,
)

LEASE = 30 * SECOND


LARGEST_BATCH = 200


class Step(NamedTuple):
    """When the clock is set back, and by how much."""

    at: int
    back: int


class Clock:
    """What Redis's clock shows."""

    def __init__(self, steps: Iterable[Step] = ()) -> None:
        self.steps = sorted(steps)
        self._ats = [step.at for step in self.steps]
        self._backs = [0, *accumulate(step.back for step in self.steps)]

    def at(self, moment: int) -> int:
        """Return what it shows at a moment."""
        return moment - self._backs[bisect_right(self._ats, moment)]


@dataclass(frozen=True, slots=True)
class SimulatedAgent:
    """An agent: what it promises, and what it is like."""

    number: int
    session_id: UUID
    interval_seconds: int | None
    schedule: str | None
    time_zone: str | None
    grace_seconds: float
    missed_limit: int | None
    """How many it may miss, if that isn't the fleet's number."""
    stuck_after: int | None
    """After how many intervals it is stuck, if that isn't the fleet's number."""
    skew: int
    spools: bool
    """Whether it keeps what it can't send, and sends it later."""
    in_step: bool
    """Whether it beats on the fleet's grid."""
    away: Spans = field(compare=False)
    """When it reaches no Redis, or Redis isn't there."""

    @property
    def name(self) -> str:
        """The name that it is registered under."""
        return f"agent-{self.number:04}"


@dataclass(slots=True)
class Arrival:
    """A message that Redis received."""

    agent: int
    received_at: int
    seen_at: int
    message: Register | Heartbeat | Deregister
    entry_id: str = ""
    removed_at: int | None = None
    """When it left its stream."""
    stored_at: int | None = None
    """When it was first committed."""

    @property
    def stream(self) -> str:
        """The stream that it is in."""
        return stream_of(self.message.kind)


@dataclass(frozen=True, slots=True)
class Commit:
    """A transaction that stores some entries of one stream."""

    at: int
    arrivals: list[Arrival]


@dataclass(frozen=True, slots=True)
class Look:
    """A sweep: it looks at Redis, and decides some time after."""

    looked_at: int
    at: int


@dataclass(slots=True)
class Plan:
    """All that happens."""

    seed: int
    start: int
    end: int
    sweep_seconds: int
    rhythm: int
    """The grid on which agents beat that are in step, in milliseconds."""
    outage: Span | None
    """When all agents that are in step are silent, each from a last sign at its start on: a switch that failed."""
    alike: int | None
    """The interval that most agents have, in seconds."""
    stuck_after: int | None
    """After how many intervals that say nothing new the fleet's agents are stuck."""
    agents: list[SimulatedAgent] = field(default_factory=list)
    arrivals: list[Arrival] = field(default_factory=list)
    """Of both streams, in the order in which Redis received them."""
    commits: list[Commit] = field(default_factory=list)
    advances: list[Commit] = field(default_factory=list)
    """When the lane was applied; some of its entries were applied before, by a worker that died then."""
    looks: list[Look] = field(default_factory=list)
    """In the order in which they decide."""
    pauses: list[Pause] = field(default_factory=list)
    maintenance: list[MaintenanceRule] = field(default_factory=list)
    clock: Clock = field(default_factory=Clock, compare=False)
    """Redis's. All other times go on."""
    stops: list[Span] = field(default_factory=list)
    """Where the pulse stopped: from the last one to the next one."""

    @property
    def time(self) -> Span:
        """From its start to its end."""
        return Span(self.start, self.end)


MISSED = 2


_DAY = 86_400_000


_MINUTE = timedelta(minutes=1)


def slots_of(agent: SimulatedAgent, plan: Plan) -> tuple[int, ...]:
    """Return the times of an agent's schedule, from a day before the plan to long after it."""
    return slots_between(agent.schedule or "", agent.time_zone or "", plan.start - _DAY, plan.end + 12 * _DAY)


@lru_cache(maxsize=512)
def slots_between(schedule: str, time_zone: str, start: int, end: int) -> tuple[int, ...]:
    """Return a schedule's times, found by looking at the wall clock of each minute.

    A fixed hour that clocks skip is when they go on; one that comes twice counts the first time.
    """
    minute, hour, _, _, weekday = schedule.split(" ")
    minutes, hours, weekdays = _values(minute, 60), _values(hour, 24), _values(weekday, 7)
    by_the_wall = not hour.startswith("*")
    return tuple(
        at
        for at, shows, skipped, is_second in _wall_clock(time_zone, start, end)
        if not (by_the_wall and is_second)
        and any(
            wall.minute in minutes and wall.hour in hours and wall.isoweekday() % 7 in weekdays
            for wall in (shows, *(skipped if by_the_wall else ()))
        )
    )


@lru_cache(maxsize=32)
def _wall_clock(time_zone: str, start: int, end: int) -> list[tuple[int, datetime, tuple[datetime, ...], bool]]:
    """Return each minute: when it is, what a clock on the wall shows, what it skipped, and whether it comes again."""
    zone, found = ZoneInfo(time_zone), []
    moment = datetime.fromtimestamp(start / 1000, UTC).replace(second=0, microsecond=0)
    before = (moment - _MINUTE).astimezone(zone).replace(tzinfo=None)
    while moment.timestamp() * 1000 <= end:
        local = moment.astimezone(zone)
        shows, skipped = local.replace(tzinfo=None), []
        while before + _MINUTE < shows:
            before += _MINUTE
            skipped.append(before)
        before = shows
        found.append((round(moment.timestamp() * 1000), shows, tuple(skipped), bool(local.fold)))
        moment += _MINUTE
    return found


def _values(text: str, count: int) -> set[int]:
    found: set[int] = set()
    for part in text.split(","):
        span, _, step = part.partition("/")
        first, _, last = span.partition("-")
        low, high = (0, count - 1) if span == "*" else (int(first), int(last or first))
        found |= set(range(low, high + 1, int(step or 1)))
    return found
