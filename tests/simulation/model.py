"""Model of a simulated fleet: agents, their messages, and the plan of commits, sweeps and commands.

Times are milliseconds since 1970. They are those of Redis's clock unless that is set back; `Clock` then converts them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import accumulate
from typing import NamedTuple
from uuid import UUID

from fleetbeat_shared.messages import Deregister, Heartbeat, Register
from simulation.commands import MaintenanceRule, Pause
from simulation.draw import SECOND, Span, Spans

LEASE = 30 * SECOND
LARGEST_BATCH = 200
MISSED = 2
"""How many intervals an agent may miss, unless it has a number of its own."""


class Step(NamedTuple):
    """A step back of Redis's clock: when, and by how much."""

    at: int
    back: int


class Clock:
    """Redis's clock."""

    def __init__(self, steps: Iterable[Step] = ()) -> None:
        self.steps = sorted(steps)
        self._ats = [step.at for step in self.steps]
        self._backs = [0, *accumulate(step.back for step in self.steps)]

    def at(self, moment: int) -> int:
        """Convert a true time to what the clock shows."""
        return moment - self._backs[bisect_right(self._ats, moment)]


@dataclass(frozen=True, slots=True)
class SimulatedAgent:
    """An agent: its promise and its properties."""

    number: int
    session_id: UUID
    interval_seconds: int | None
    schedule: str | None
    time_zone: str | None
    grace_seconds: float
    missed_limit: int | None
    """How many intervals it may miss; None: as the fleet."""
    stuck_after: int | None
    """After how many intervals without a change it is stuck; None: as the fleet."""
    clock_skew: int
    has_spool: bool
    """Whether it keeps heartbeats that it can't send, and sends them later."""
    on_grid: bool
    """Whether it beats on the fleet's grid, with many others."""
    unreachable: Spans = field(compare=False)
    """When it can't reach Redis, or Redis is down."""

    @property
    def name(self) -> str:
        """Its agent name."""
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
    """When it was acknowledged and left the inbox."""
    stored_at: int | None = None
    """When it was first committed."""


@dataclass(frozen=True, slots=True)
class Commit:
    """A transaction that stores some entries."""

    at: int
    arrivals: list[Arrival]


@dataclass(frozen=True, slots=True)
class Sweep:
    """A sweep: it reads Redis first, and decides some time after."""

    read_at: int
    decided_at: int


@dataclass(slots=True)
class Plan:
    """Everything that happens in a simulation."""

    seed: int
    start: int
    end: int
    sweep_seconds: int
    grid: int
    """The grid on which most agents beat, in milliseconds."""
    network_failure: Span | None
    """When all agents on the grid are silent, each after a last heartbeat at its start."""
    common_interval_seconds: int | None
    """The interval of most agents."""
    stuck_after: int | None
    """After how many intervals without a change the fleet's agents are stuck."""
    agents: list[SimulatedAgent] = field(default_factory=list)
    arrivals: list[Arrival] = field(default_factory=list)
    """In the order of the stream."""
    commits: list[Commit] = field(default_factory=list)
    sweeps: list[Sweep] = field(default_factory=list)
    """In the order in which they decide."""
    pauses: list[Pause] = field(default_factory=list)
    maintenance: list[MaintenanceRule] = field(default_factory=list)
    clock: Clock = field(default_factory=Clock, compare=False)
    pulse_gaps: list[Span] = field(default_factory=list)
    """Where the pulse stopped: from its last beat to its next one."""

    @property
    def time(self) -> Span:
        """The span from its start to its end."""
        return Span(self.start, self.end)
