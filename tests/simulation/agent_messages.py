"""Messages of a simulated agent: when it registers, beats and deregisters, what it reports, and what reaches Redis."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any
from uuid import UUID

from fleetbeat_shared.messages import Deregister, Heartbeat, Register
from fleetbeat_worker.rules.spans import from_milliseconds
from simulation.draw import DAY, HOUR, MINUTE, SECOND, Faults, chance, log_uniform, pick
from simulation.model import MISSED, Arrival, Plan, SimulatedAgent
from simulation.wall_clock import slots_of

REPORTED = ((), ("progress",), ("status",), ("progress", "status"), ("progress", "work_item_id", "status"))
"""The fields that an agent reports, one of these."""


class AgentMessages:
    """The messages of one agent."""

    def __init__(self, draw: random.Random, agent: SimulatedAgent, plan: Plan, faults: Faults) -> None:
        self._draw = draw
        self._agent = agent
        self._plan = plan
        self._faults = faults
        self._activity = Activity(draw, (agent.interval_seconds or 0) * SECOND, agent.stuck_after or plan.stuck_after)
        self._found: list[Arrival] = []

    def arrivals(self) -> list[Arrival]:
        """Draw what Redis receives from the agent, in no particular order."""
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
            deregisters = chance(draw, 0.3)
            if deregisters and end < self._plan.end:
                self._send(end, "deregister")
            registers = deregisters or chance(draw, 0.5)
            absence = log_uniform(draw, 5 * SECOND, max(DAY, 8 * promised))
            begin = self._faults.after(end + absence, self._faults.asleep)
        return self._found

    def _beats(self, begin: int, end: int) -> Iterator[int]:
        """Draw the times of its heartbeats within one run."""
        draw, asleep = self._draw, self._faults.asleep
        if self._agent.interval_seconds is None:
            early = round(self._agent.grace_seconds * 400)
            for slot in slots_of(self._agent, self._plan):
                moment = slot + pick(draw, -early, 2 * early + 1)
                if begin <= moment < end and asleep.end_of(moment) is None:  # cron skips what it misses
                    yield moment
            return
        step = self._agent.interval_seconds * SECOND
        grid = min(self._plan.grid, step // 10) if self._agent.on_grid else 1
        moment = begin + pick(draw, 10, min(step, 20 * SECOND))
        failure = self._plan.network_failure if self._agent.on_grid else None
        while moment < end:
            if failure is not None and failure.start <= moment < failure.end:
                yield failure.start + pick(draw, 0, 2 * SECOND)
                moment, failure = failure.end + pick(draw, 0, 20 * SECOND), None
                continue
            moment = self._faults.after(moment, asleep)
            yield moment
            if chance(draw, 0.01):  # silent for about as long as it may be
                allowed = (self._agent.missed_limit or MISSED) * step + round(self._agent.grace_seconds * SECOND)
                moment += allowed + pick(draw, -30 * SECOND, 30 * SECOND)
                continue
            following = moment + round(step * draw.uniform(0.9, 1.0))
            moment = max(moment + 1, following - following % grid)

    def _send(self, moment: int, kind: str) -> None:
        """Let a message arrive: soon, much later from a spool, never, or twice."""
        draw, faults = self._draw, self._faults
        moment = faults.after(moment, faults.asleep)
        reached_at = faults.after(moment, self._agent.unreachable, pause=20.0)
        waited = reached_at - moment
        is_lost = chance(draw, 0.01) or (waited > 0 and not self._agent.has_spool)
        if kind == "heartbeat" and is_lost:
            return
        # A registration is repeated until it arrives, and counts from its arrival.
        buffered = waited if kind == "heartbeat" else 0
        message = self._message(moment, kind, buffered)
        travels = pick(draw, 1, 50) if chance(draw, 0.97) else log_uniform(draw, 50, MINUTE)
        for _ in range(2 if chance(draw, 0.01) else 1):
            received_at = faults.after(reached_at + travels, faults.no_redis)
            if received_at < self._plan.end:
                self._found.append(Arrival(self._agent.number, received_at, received_at - buffered, message))
            travels += log_uniform(draw, 10, 5 * MINUTE)

    def _message(self, moment: int, kind: str, buffered: int) -> Register | Heartbeat | Deregister:
        agent, clock = self._agent, moment + self._agent.clock_skew
        head: dict[str, Any] = {"id": self._message_id(clock), "session_id": agent.session_id}
        head["sent_at"] = from_milliseconds(clock)
        if kind == "register":
            return Register(  # validated here; the many heartbeats only when they are read from the inbox
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
        head |= self._activity.next_report(moment)
        return Heartbeat.model_construct(**head)

    def _message_id(self, clock: int) -> UUID:
        noise = self._draw.getrandbits(74)
        return UUID(int=clock << 80 | 7 << 76 | (noise >> 62) << 64 | 2 << 62 | noise & ((1 << 62) - 1))


class Activity:
    """What an agent reports about its work: sometimes it changes often, sometimes it repeats itself."""

    def __init__(self, draw: random.Random, interval: int | None, stuck_after: int | None) -> None:
        self._draw = draw
        self._shortest = (interval or 1) // 4 + 1
        self._longest = 3 * (interval or 1) * (stuck_after or 3)
        self._fields = draw.choice(REPORTED)
        self._values = dict.fromkeys(self._fields, 0)
        self._until = 0

    def next_report(self, moment: int) -> dict[str, str]:
        """Draw the fields of a heartbeat: all that the agent uses, or sometimes none."""
        draw = self._draw
        if not self._fields or chance(draw, 0.1):
            return {}
        if moment >= self._until:
            name = draw.choice(self._fields)
            self._values[name] = (self._values[name] + draw.randint(1, 2)) % 3  # so that some return to earlier values
            self._until = moment + log_uniform(draw, self._shortest, self._longest)
        return {name: f"{name} {number}" for name, number in self._values.items()}
