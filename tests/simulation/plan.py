"""Plan of a simulated fleet, drawn from a seed: what agents send, what reaches Redis, when workers and sweeps run.

All of it is fixed before anything runs, so the code under test only determines its verdicts.
A machine that sleeps and a Redis clock that is set forward are the same here: a span in which nothing happens.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from operator import attrgetter
from uuid import UUID

from fleetbeat_worker.broker.pulse import PULSE_SECONDS
from fleetbeat_worker.rules.liveness import default_grace_seconds
from fleetbeat_worker.rules.spans import to_milliseconds
from simulation.agent_messages import AgentMessages
from simulation.commands import draw_maintenance, draw_pauses
from simulation.draw import (
    DAY,
    HOUR,
    MINUTE,
    SECOND,
    Faults,
    Span,
    Spans,
    chance,
    draw_spans,
    log_uniform,
    pick,
    weighted,
)
from simulation.model import LARGEST_BATCH, LEASE, Arrival, Clock, Commit, Plan, SimulatedAgent, Step, Sweep

STARTS = (
    datetime(2026, 3, 26, tzinfo=UTC),  # clocks in Berlin go forward on the 29th
    datetime(2026, 10, 22, tzinfo=UTC),  # and back on the 25th
    datetime(2026, 10, 29, tzinfo=UTC),  # those in New York on the 1st of November
    datetime(2026, 3, 5, tzinfo=UTC),  # and forward on the 8th
    datetime(2026, 6, 1, tzinfo=UTC),
)
SCHEDULES = {
    "0 * * * *": 1,
    "*/30 * * * *": 1,
    "15 8 * * *": 4,
    "30 2 * * *": 8,
    "0 */6 * * *": 4,
    "10,40 1-5 * * *": 8,
    "30 2 * * 1-5": 4,
}
"""Each with its weight. Frequent schedules cost more time and test the same rules. Many are at night, when
clocks change."""
ZONES = {"UTC": 1, "Europe/Berlin": 3, "America/New_York": 3, "Asia/Kolkata": 1}
INTERVALS = {600: 1, 1800: 2, 3600: 6, 7200: 12, 21_600: 12, 43_200: 4, 86_400: 4}
"""Each with its weight: most are long, so that a week has few heartbeats and many verdicts."""
GRIDS = (300, 900, 1800)
"""Grids in seconds on which most agents of a fleet beat, like programs that share a timer."""
CLOCK_SKEWS = (0, 0, 0, -3 * DAY, 2 * DAY, 400 * DAY)
"""Errors of the agents' clocks."""
STUCK_AFTER = (None, 3, 6)
"""After how many intervals a fleet's agents are stuck."""
OWN_STUCK_AFTER = (None, None, None, 0, 2, 4)
"""The same for single agents."""
PULSE_PERIOD = round(PULSE_SECONDS * SECOND)
_FOREVER = 1 << 62


def draw_plan(seed: int, agents: int, weeks: float, *, sets_clock_back: bool = False) -> Plan:
    """Draw the plan of a seed. With `sets_clock_back`, one plan of three sets Redis's clock back.

    Such a plan has neither schedules, nor maintenance, nor pauses with an end, nor stuck agents: all of these are bound
    to times, and such a clock reaches some times twice.
    """
    draw = random.Random(seed)  # noqa: S311 - the same plan for the same seed, no secret
    start = to_milliseconds(draw.choice(STARTS))
    end = start + round(weeks * 7 * DAY)
    failed_at = draw.randrange(start, end)
    plan = Plan(
        seed,
        start,
        end,
        sweep_seconds=draw.choice((20, 60, 120, 300)),
        grid=draw.choice(GRIDS) * SECOND,
        network_failure=Span(failed_at, failed_at + log_uniform(draw, HOUR, DAY)) if chance(draw, 0.5) else None,
        common_interval_seconds=draw.choice((1800, 3600, 7200)) if chance(draw, 0.5) else None,
        stuck_after=draw.choice(STUCK_AFTER),
    )
    if sets_clock_back and seed % 3 == 0:
        plan.clock = Clock(_draw_steps(draw, plan.time))
        plan.stuck_after = None
    faults = Faults(draw, plan.time)
    for number in range(agents):
        agent = _draw_agent(draw, number, plan, faults)
        plan.agents.append(agent)
        plan.arrivals += AgentMessages(draw, agent, plan, faults).arrivals()
        plan.pauses += draw_pauses(draw, number, plan.time, faults)
    if plan.clock.steps:
        plan.pauses = [pause for pause in plan.pauses if pause.until is None]
    else:
        plan.maintenance = draw_maintenance(draw, plan.time, faults)
    plan.pulse_gaps = _draw_pulse_gaps(draw, plan.start, faults.no_pulse)
    plan.arrivals.sort(key=attrgetter("received_at"))
    _draw_commits(draw, plan, faults)
    plan.sweeps = _draw_sweeps(draw, plan, faults)
    _number_entries(plan.arrivals, plan.clock, (sweep.decided_at for sweep in plan.sweeps))
    plan.commits.sort(key=attrgetter("at"))
    return plan


def _draw_agent(draw: random.Random, number: int, plan: Plan, faults: Faults) -> SimulatedAgent:
    interval = weighted(draw, INTERVALS) if plan.clock.steps or chance(draw, 0.85) else None
    if plan.common_interval_seconds is not None and interval and chance(draw, 0.9):
        interval = plan.common_interval_seconds
    grace = default_grace_seconds(interval) if chance(draw, 0.7) else float(draw.choice((0, 5, 60, 300)))
    unreachable = draw_spans(draw, plan.time, draw.choice((0, 0, 0, 1, 3)), MINUTE, DAY)
    return SimulatedAgent(
        number,
        session_id=UUID(int=draw.getrandbits(128), version=4),
        interval_seconds=interval,
        schedule=None if interval else weighted(draw, SCHEDULES),
        time_zone=None if interval else weighted(draw, ZONES),
        grace_seconds=grace,
        missed_limit=draw.choice((1, 3, 5)) if chance(draw, 0.15) else None,
        stuck_after=draw.choice(OWN_STUCK_AFTER) if interval and not plan.clock.steps else None,
        clock_skew=draw.choice(CLOCK_SKEWS),
        has_spool=chance(draw, 0.7),
        on_grid=chance(draw, 0.9),
        unreachable=unreachable + faults.no_redis,
    )


def _draw_commits(draw: random.Random, plan: Plan, faults: Faults) -> None:
    """Draw the commits: batches may overtake each other, and some workers die before or after the commit."""
    position, pace = 0, draw.choice((2 * SECOND, 20 * SECOND, MINUTE))
    while position < len(plan.arrivals):
        first = plan.arrivals[position].received_at
        read_at = faults.after(first + pick(draw, 2, pace), faults.no_ingest)
        end = position
        while end < len(plan.arrivals) and plan.arrivals[end].received_at <= read_at and end - position < LARGEST_BATCH:
            end += 1
        _deliver(draw, plan, faults, plan.arrivals[position:end], read_at)
        position = end


def _deliver(draw: random.Random, plan: Plan, faults: Faults, batch: list[Arrival], read_at: int) -> None:
    """Give a batch to a worker, and to another one until it is stored and acknowledged."""
    stored_at = read_at + (pick(draw, 3, 100) if chance(draw, 0.95) else log_uniform(draw, 100, MINUTE))
    stored_at = faults.after(stored_at, faults.asleep)
    if chance(draw, 0.01) or faults.no_commit.end_of(stored_at) is not None:
        _redeliver(draw, plan, faults, batch, max(read_at + LEASE, stored_at))
        return
    plan.commits.append(Commit(stored_at, batch))
    for arrival in batch:
        arrival.stored_at = stored_at if arrival.stored_at is None else min(stored_at, arrival.stored_at)
    if chance(draw, 0.01):  # the worker died before it acknowledged
        _redeliver(draw, plan, faults, batch, read_at + LEASE)
        return
    removed_at = stored_at + (pick(draw, 1, 10) if chance(draw, 0.97) else log_uniform(draw, 10, 30 * SECOND))
    removed_at = faults.after(removed_at, faults.no_redis)
    for arrival in batch:
        arrival.removed_at = removed_at


def _redeliver(draw: random.Random, plan: Plan, faults: Faults, batch: list[Arrival], expired_at: int) -> None:
    """Give a batch to other workers, in two parts, after its lease has expired."""
    middle = draw.randint(0, len(batch))
    for part in (batch[:middle], batch[middle:]):
        if part:
            taken_at = faults.after(expired_at + pick(draw, 10, 10 * SECOND), faults.no_ingest)
            _deliver(draw, plan, faults, part, taken_at)


def _draw_sweeps(draw: random.Random, plan: Plan, faults: Faults) -> list[Sweep]:
    """Draw the sweeps. Sometimes two run at once, or one is delayed between its reading and its decision."""
    sweeps = []
    moment = plan.start + draw.randint(0, 5 * SECOND)
    while moment < plan.end:
        read_at = faults.after(moment, faults.no_sweep)
        for _ in range(2 if chance(draw, 0.03) else 1):
            decided_at = read_at + (pick(draw, 1, 50) if chance(draw, 0.95) else log_uniform(draw, 50, MINUTE))
            decided_at = faults.after(decided_at, faults.asleep)
            if faults.no_commit.end_of(decided_at) is None:
                sweeps.append(Sweep(read_at, decided_at))
            read_at += pick(draw, 0, 2 * SECOND)
        moment = max(moment, read_at) + plan.sweep_seconds * SECOND
    return sorted(sweeps, key=attrgetter("decided_at"))


def _draw_steps(draw: random.Random, time: Span) -> list[Step]:
    """Draw steps back of Redis's clock, as many short as long ones."""
    moments = (draw.randrange(time.start, time.end) for _ in range(draw.choice((1, 2, 3))))
    return [Step(moment, log_uniform(draw, SECOND, 6 * HOUR)) for moment in moments]


def _number_entries(arrivals: Sequence[Arrival], clock: Clock, sweeps_done: Iterable[int]) -> None:
    """Give each arrival its id in the stream.

    Ids don't go back with the clock: they stand still until the clock has reached them again, or a sweep finds the
    inbox empty and rebuilds it.
    """
    last, sequence, held_until = -1, 0, 0
    times = iter(sorted(sweeps_done))
    sweep = next(times, _FOREVER)
    for arrival in arrivals:
        while sweep <= arrival.received_at:
            if held_until <= sweep and last > clock.at(sweep) + MINUTE:
                last = -1
            sweep = next(times, _FOREVER)
        now = clock.at(arrival.received_at)
        sequence = sequence + 1 if last >= now else 0
        last = max(last, now)
        arrival.entry_id = f"{last}-{sequence}"
        held_until = max(held_until, _FOREVER if arrival.removed_at is None else arrival.removed_at)


def _draw_pulse_gaps(draw: random.Random, start: int, missing: Spans) -> list[Span]:
    """Draw the gaps of the pulse, each from its last beat before to its first one after a span without Redis."""
    gaps, first = [], start
    for span in missing:
        last = first + (span.start - first) // PULSE_PERIOD * PULSE_PERIOD
        # After a stall Redis processes the waiting write at once; a pool controller that starts takes longer.
        first = span.end + pick(draw, 1, 20 if span.end - span.start < 30 * SECOND else 500)
        gaps.append(Span(last, first))
    return gaps
