"""What happens in a simulated fleet, drawn from a seed: who beats when, what reaches Redis when, who works when.

All of it is decided before anything runs: the store and the rules that are tried can't change what happens, only what
is said about it. Times are milliseconds since 1970 as Redis's clock shows them unless it is set back. That the machine
sleeps, or that Redis's clock is set forward, is one and the same here: a span in which nobody does anything.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from operator import attrgetter
from typing import Any
from uuid import UUID

from fleetbeat_shared.messages import Deregister, Heartbeat, Register
from fleetbeat_shared.redis_keys import INBOX, SESSIONS
from fleetbeat_worker.rules.liveness import default_grace_seconds
from fleetbeat_worker.rules.spans import from_milliseconds, to_milliseconds
from simulation.activity import FLEET_LIMITS, OWN_LIMITS, Talk
from simulation.clock import draw_steps, number_entries
from simulation.commands import draw_maintenance, draw_pauses
from simulation.draw import (
    DAY,
    HOUR,
    MINUTE,
    SECOND,
    Span,
    Troubles,
    chance,
    draw_spans,
    log_uniform,
    pick,
    weighted,
)
from simulation.model import LARGEST_BATCH, LEASE, MISSED, Arrival, Clock, Commit, Look, Plan, SimulatedAgent, slots_of
from simulation.pulse import draw_stops

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
"""Each with how many have it: a schedule of every half an hour is worked out as one of each day is, and costs more.
Many are at night, when clocks change."""
ZONES = {"UTC": 1, "Europe/Berlin": 3, "America/New_York": 3, "Asia/Kolkata": 1}
INTERVALS = {600: 1, 1800: 2, 3600: 6, 7200: 12, 21_600: 12, 43_200: 4, 86_400: 4}
"""Each with how many promise it: most promise long ones, so that a week has few heartbeats and many verdicts."""
RHYTHMS = (300, 900, 1800)
"""On what grid of seconds most of a fleet's agents beat, as programs do that one timer wakes."""
SKEWS = (0, 0, 0, -3 * DAY, 2 * DAY, 400 * DAY)
"""How wrong agents' clocks are."""


def draw_plan(seed: int, agents: int, weeks: float, *, sets_back: bool = False) -> Plan:
    """Return the plan of a seed. With `sets_back`, Redis's clock is, in one plan of three: for what reckons with it.

    Then all agents have intervals, there is no maintenance, no pause ends by itself, and nobody looks who is stuck: all
    of these are times that such a clock comes to twice.
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
        rhythm=draw.choice(RHYTHMS) * SECOND,
        outage=Span(failed_at, failed_at + log_uniform(draw, HOUR, DAY)) if chance(draw, 0.5) else None,
        alike=draw.choice((1800, 3600, 7200)) if chance(draw, 0.5) else None,
        stuck_after=draw.choice(FLEET_LIMITS),
    )
    if sets_back and seed % 3 == 0:
        plan.clock = Clock(draw_steps(draw, plan.time))
        plan.stuck_after = None
    troubles = Troubles(draw, plan.time)
    for number in range(agents):
        agent = _draw_agent(draw, number, plan, troubles)
        plan.agents.append(agent)
        plan.arrivals += _Life(draw, agent, plan, troubles).arrivals()
        plan.pauses += draw_pauses(draw, number, plan.time, troubles)
    if plan.clock.steps:
        plan.pauses = [pause for pause in plan.pauses if pause.until is None]
    else:
        plan.maintenance = draw_maintenance(draw, plan.time, troubles)
    plan.stops = draw_stops(draw, plan.start, troubles.no_pulse)
    plan.arrivals.sort(key=attrgetter("received_at"))
    advances = _work(draw, plan, troubles)
    plan.looks = _looks(draw, plan, troubles)
    _advance(draw, plan, troubles, [*advances, *(look.looked_at for look in plan.looks)])
    for stream in (INBOX, SESSIONS):
        arrivals = [arrival for arrival in plan.arrivals if arrival.stream == stream]
        number_entries(arrivals, plan.clock, (look.at for look in plan.looks))
    plan.commits.sort(key=attrgetter("at"))
    return plan


def _draw_agent(draw: random.Random, number: int, plan: Plan, troubles: Troubles) -> SimulatedAgent:
    interval = weighted(draw, INTERVALS) if plan.clock.steps or chance(draw, 0.85) else None
    if plan.alike is not None and interval and chance(draw, 0.9):
        interval = plan.alike
    grace = default_grace_seconds(interval) if chance(draw, 0.7) else float(draw.choice((0, 5, 60, 300)))
    away = draw_spans(draw, plan.time, draw.choice((0, 0, 0, 1, 3)), MINUTE, DAY)
    return SimulatedAgent(
        number,
        session_id=UUID(int=draw.getrandbits(128), version=4),
        interval_seconds=interval,
        schedule=None if interval else weighted(draw, SCHEDULES),
        time_zone=None if interval else weighted(draw, ZONES),
        grace_seconds=grace,
        missed_limit=draw.choice((1, 3, 5)) if chance(draw, 0.15) else None,
        stuck_after=draw.choice(OWN_LIMITS) if interval and not plan.clock.steps else None,
        skew=draw.choice(SKEWS),
        spools=chance(draw, 0.7),
        in_step=chance(draw, 0.9),
        away=away + troubles.no_redis,
    )


class _Life:
    """What an agent sends, and what of it arrives."""

    def __init__(self, draw: random.Random, agent: SimulatedAgent, plan: Plan, troubles: Troubles) -> None:
        self._draw = draw
        self._agent = agent
        self._plan = plan
        self._troubles = troubles
        self._talk = Talk(draw, (agent.interval_seconds or 0) * SECOND, agent.stuck_after or plan.stuck_after)
        self._found: list[Arrival] = []
        self._registered_at = 0

    def arrivals(self) -> list[Arrival]:
        """Return what Redis receives of the agent, in no order."""
        draw = self._draw
        begin = self._plan.start + (0 if chance(draw, 0.8) else log_uniform(draw, MINUTE, 3 * DAY))
        promised = (self._agent.interval_seconds or 21_600) * SECOND
        immortal = chance(draw, 0.3)
        registers = True
        while begin < self._plan.end:
            end = self._plan.end if immortal else begin + log_uniform(draw, HOUR, 4 * DAY)
            if registers:
                self._send(begin, "register")
            for moment in self._beats(begin, min(end, self._plan.end)):
                self._send(moment, "heartbeat")
            says_goodbye = chance(draw, 0.3)
            if says_goodbye and end < self._plan.end:
                self._send(end, "deregister")
            registers = says_goodbye or chance(draw, 0.5)
            gone = log_uniform(draw, 5 * SECOND, max(DAY, 8 * promised))
            begin = self._troubles.after(end + gone, self._troubles.asleep)
        return self._found

    def _beats(self, begin: int, end: int) -> Iterator[int]:
        draw, asleep = self._draw, self._troubles.asleep
        if self._agent.interval_seconds is None:
            early = round(self._agent.grace_seconds * 400)
            for slot in slots_of(self._agent, self._plan):
                moment = slot + pick(draw, -early, 2 * early + 1)
                if begin <= moment < end and asleep.end_of(moment) is None:  # cron doesn't make up for it
                    yield moment
            return
        step = self._agent.interval_seconds * SECOND
        grid = min(self._plan.rhythm, step // 10) if self._agent.in_step else 1
        moment = begin + pick(draw, 10, min(step, 20 * SECOND))
        outage = self._plan.outage if self._agent.in_step else None
        while moment < end:
            if outage is not None and outage.start <= moment < outage.end:
                yield outage.start + pick(draw, 0, 2 * SECOND)
                moment, outage = outage.end + pick(draw, 0, 20 * SECOND), None
                continue
            moment = self._troubles.after(moment, asleep)
            yield moment
            if chance(draw, 0.01):  # it has an eye on what it may
                allowed = (self._agent.missed_limit or MISSED) * step + round(self._agent.grace_seconds * SECOND)
                moment += allowed + pick(draw, -30 * SECOND, 30 * SECOND)
                continue
            following = moment + round(step * draw.uniform(0.9, 1.0))
            moment = max(moment + 1, following - following % grid)

    def _send(self, moment: int, kind: str) -> None:
        """Let a message arrive: soon, or much later from a spool, or never, or twice."""
        draw, troubles = self._draw, self._troubles
        moment = troubles.after(moment, troubles.asleep)
        reached_at = troubles.after(moment, self._agent.away, pause=20.0)
        if kind != "register":  # what it says is sent in its order
            reached_at = max(reached_at, self._registered_at)
        waited = reached_at - moment
        is_lost = chance(draw, 0.01) or (waited > 0 and not self._agent.spools)
        if kind == "heartbeat" and is_lost:
            return
        # A registration is sent until it arrives, and counts from then on.
        buffered = waited if kind == "heartbeat" else 0
        message = self._message(moment, kind, buffered)
        travels = pick(draw, 1, 50) if chance(draw, 0.97) else log_uniform(draw, 50, MINUTE)
        for copy in range(2 if chance(draw, 0.01) else 1):
            received_at = troubles.after(reached_at + travels, troubles.no_redis)
            if kind == "register" and not copy:
                self._registered_at = received_at
            if received_at < self._plan.end:
                self._found.append(Arrival(self._agent.number, received_at, received_at - buffered, message))
            travels += log_uniform(draw, 10, 5 * MINUTE)

    def _message(self, moment: int, kind: str, buffered: int) -> Register | Heartbeat | Deregister:
        agent, clock = self._agent, moment + self._agent.skew
        head: dict[str, Any] = {"id": self._message_id(clock), "session_id": agent.session_id}
        head["sent_at"] = from_milliseconds(clock)
        if kind == "register":
            return Register(  # checked as an agent's is; the many others aren't until they come out of the inbox
                **head,
                agent_name=agent.name,
                interval_seconds=agent.interval_seconds,
                schedule=agent.schedule,
                time_zone=agent.time_zone,
                grace_seconds=agent.grace_seconds,
                missed_intervals=agent.missed_limit,
                stuck_after=agent.stuck_after,
            )
        if kind == "deregister":
            return Deregister.model_construct(**head)
        if buffered:
            head["buffered_seconds"] = buffered / 1000
        head |= self._talk.say(moment)
        return Heartbeat.model_construct(**head)

    def _message_id(self, clock: int) -> UUID:
        noise = self._draw.getrandbits(74)
        return UUID(int=clock << 80 | 7 << 76 | (noise >> 62) << 64 | 2 << 62 | noise & ((1 << 62) - 1))


def _work(draw: random.Random, plan: Plan, troubles: Troubles) -> Iterator[int]:
    """Let workers take heartbeats, in batches that may overtake each other; some die, before or after the commit.

    Yields when they apply the lane: before they store a batch, after they have read it; and soon after it has anything.
    """
    position, pace = 0, draw.choice((2 * SECOND, 20 * SECOND, MINUTE))
    beats = [arrival for arrival in plan.arrivals if arrival.stream == INBOX]
    while position < len(beats):
        first = beats[position].received_at
        read_at = troubles.after(first + pick(draw, 2, pace), troubles.no_ingest)
        end = position
        while end < len(beats) and beats[end].received_at <= read_at and end - position < LARGEST_BATCH:
            end += 1
        yield from _deliver(draw, plan, troubles, beats[position:end], read_at)
        position = end
    for arrival in plan.arrivals:
        if arrival.stream == SESSIONS:
            yield troubles.after(arrival.received_at + pick(draw, 2, pace), troubles.no_ingest)


def _advance(draw: random.Random, plan: Plan, troubles: Troubles, moments: Iterable[int]) -> None:
    """Let the lane be applied at some moments; workers die now and then before they remove what they applied."""
    waiting: list[Arrival] = []
    coming = deque(arrival for arrival in plan.arrivals if arrival.stream == SESSIONS)
    for moment in sorted(moments):
        while coming and coming[0].received_at <= moment:
            waiting.append(coming.popleft())
        waiting = [arrival for arrival in waiting if arrival.removed_at is None or arrival.removed_at > moment]
        if not waiting or troubles.no_commit.end_of(moment) is not None:
            continue
        plan.advances.append(Commit(moment, list(waiting)))
        removed_at = troubles.after(moment + pick(draw, 1, 10), troubles.no_redis)
        dies = chance(draw, 0.02)
        for arrival in waiting:
            arrival.stored_at = arrival.stored_at or moment
            if not dies:
                arrival.removed_at = min(removed_at, arrival.removed_at or removed_at)


def _deliver(draw: random.Random, plan: Plan, troubles: Troubles, batch: list[Arrival], read_at: int) -> Iterator[int]:
    """Hand a batch to a worker, and again to another until it is stored and acknowledged; yield as `_work` does."""
    stored_at = read_at + (pick(draw, 3, 100) if chance(draw, 0.95) else log_uniform(draw, 100, MINUTE))
    stored_at = troubles.after(stored_at, troubles.asleep)
    if chance(draw, 0.01) or troubles.no_commit.end_of(stored_at) is not None:
        yield from _take_over(draw, plan, troubles, batch, max(read_at + LEASE, stored_at))
        return
    yield stored_at if troubles.no_commit.end_of(read_at) is not None else read_at
    plan.commits.append(Commit(stored_at, batch))
    for arrival in batch:
        arrival.stored_at = stored_at if arrival.stored_at is None else min(stored_at, arrival.stored_at)
    if chance(draw, 0.01):  # it died before it acknowledged
        yield from _take_over(draw, plan, troubles, batch, read_at + LEASE)
        return
    removed_at = stored_at + (pick(draw, 1, 10) if chance(draw, 0.97) else log_uniform(draw, 10, 30 * SECOND))
    removed_at = troubles.after(removed_at, troubles.no_redis)
    for arrival in batch:
        arrival.removed_at = removed_at


def _take_over(
    draw: random.Random, plan: Plan, troubles: Troubles, batch: list[Arrival], expired_at: int
) -> Iterator[int]:
    middle = draw.randint(0, len(batch))
    for part in (batch[:middle], batch[middle:]):
        if part:
            taken_at = troubles.after(expired_at + pick(draw, 10, 10 * SECOND), troubles.no_ingest)
            yield from _deliver(draw, plan, troubles, part, taken_at)


def _looks(draw: random.Random, plan: Plan, troubles: Troubles) -> list[Look]:
    """Return the sweeps. Now and then two are under way at once, or one sleeps between its look and its decision."""
    looks = []
    moment = plan.start + draw.randint(0, 5 * SECOND)
    while moment < plan.end:
        looked_at = troubles.after(moment, troubles.no_sweep)
        for _ in range(2 if chance(draw, 0.03) else 1):
            decided_at = looked_at + (pick(draw, 1, 50) if chance(draw, 0.95) else log_uniform(draw, 50, MINUTE))
            decided_at = troubles.after(decided_at, troubles.asleep)
            if troubles.no_commit.end_of(decided_at) is None:
                looks.append(Look(looked_at, decided_at))
            looked_at += pick(draw, 0, 2 * SECOND)
        moment = max(moment, looked_at) + plan.sweep_seconds * SECOND
    return sorted(looks, key=attrgetter("at"))
