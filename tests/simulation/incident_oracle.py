"""The oracle of what people are told: silences of half the fleet as one incident, their end as one, all others singly.

It goes through the sweeps one after the other, and counts who is live and who is silent anew at each. What happens
between a sweep's look and its decision may count or not, so that of some agents it isn't sure whether they are live.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from simulation.model import Look, Plan
from simulation.oracle import Change, Life, Oracle, Said

AT_LEAST = 5
GIVEN_UP = 86_400_000
JOINING = 120_000


class Told(NamedTuple):
    """A notice: of what kind, as of when (of a sweep: when it looked), of which agent, and of how many."""

    kind: str
    at: int
    agent: str | None
    agents: int | None


@dataclass(slots=True)
class _Incident:
    started_at: int
    members: set[int] = field(default_factory=set)
    """Those that went silent in it, and not once more by themselves."""
    size: int = 0


def find_false_notices(plan: Plan, oracle: Oracle, said: Said, told: Sequence[Told]) -> list[str]:
    """Return what was told wrongly, in sentences."""
    return [*_Telling(plan, oracle, said.silent, told).faults(), *_find_stuck_untold(plan, said, told)]


def _find_stuck_untold(plan: Plan, said: Said, told: Sequence[Told]) -> list[str]:
    """Return who was found stuck, and that wasn't told once, or was told and wasn't found."""
    names = {agent.number: agent.name for agent in plan.agents}
    found = [
        (names[number], plan.looks[change.looks].looked_at)
        for number, changes in said.stuck.items()
        for change in changes
        if change.holds
    ]
    notices = [(notice.agent or "", notice.at) for notice in told if notice.kind == "stuck"]
    differing = (Counter(found) - Counter(notices)) + (Counter(notices) - Counter(found))
    return [f"that {name} is stuck was found at {at} and not told, or the other way round" for name, at in differing]


class _Telling:
    def __init__(
        self, plan: Plan, oracle: Oracle, changes: Mapping[int, Sequence[Change]], told: Sequence[Told]
    ) -> None:
        self._plan = plan
        self._lives = {agent.number: oracle.lives(agent) for agent in plan.agents}
        self._gaps = {end for _, end in oracle.outages}
        self._numbers = {agent.name: agent.number for agent in plan.agents}
        self._flagged: dict[int, set[int]] = defaultdict(set)
        self._freed: dict[int, set[int]] = defaultdict(set)
        for number, said in changes.items():
            for change in said:
                (self._flagged if change.holds else self._freed)[change.looks].add(number)
        self._at: dict[int, list[Told]] = defaultdict(list)
        for notice in told:
            self._at[notice.at].append(notice)
        self._recoveries = sorted((notice.at, notice.agent or "") for notice in told if notice.kind == "recovered")
        self._stored = self._lifecycle()
        self._faults: list[str] = []
        self._last_flagged: dict[int, int] = {}
        self._singly: dict[int, int] = {}
        """When those that are silent, and were told of by themselves, were flagged."""

    def faults(self) -> list[str]:
        """Go through all sweeps."""
        silent: set[int] = set()
        incident: _Incident | None = None
        before = 0
        for place, look in enumerate(self._plan.looks):
            freed = self._freed[place]
            silent -= freed
            self._singly = {number: at for number, at in self._singly.items() if number not in freed}
            if incident is not None:
                self._check_recoveries(incident, before, look)
            incident = self._check_end(incident, silent, look)
            if flagged := self._flagged[place]:
                incident = self._check_flags(incident, flagged, look)
                silent |= flagged
                self._last_flagged |= dict.fromkeys(flagged, look.looked_at)
            before = look.at
        return self._faults

    def _fault(self, look: Look, what: str) -> None:
        self._faults.append(f"the sweep that looked at {look.looked_at} {what}")

    def _check_end(self, incident: _Incident | None, silent: set[int], look: Look) -> _Incident | None:
        """Find an end that wasn't told when half of the agents were back, or was told before."""
        was_told = any(notice.kind == "incident_over" for notice in self._at[look.looked_at])
        left = silent & incident.members if incident is not None else set()
        is_over = (
            incident is not None
            and look.looked_at not in self._gaps
            and (
                2 * len(left) <= incident.size
                or look.looked_at - max(self._last_flagged[number] for number in left) >= GIVEN_UP
            )
        )
        if was_told != is_over:
            self._fault(look, "told the end of an incident too early" if was_told else "told no end of an incident")
        return None if was_told else incident

    def _check_flags(self, incident: _Incident | None, flagged: set[int], look: Look) -> _Incident | None:
        """Find flags that weren't told, were told twice, or one by one although they were an incident; and others."""
        notices = self._at[look.looked_at]
        sizes = [notice.agents for notice in notices if notice.kind == "incident"]
        singly = sorted(self._numbers[notice.agent or ""] for notice in notices if notice.kind == "degraded")
        certain, doubtful = self._count_live(look)
        number, before = len(flagged), set()
        is_young = incident is not None and look.looked_at - incident.started_at < JOINING
        if not is_young:  # what was flagged in the last minutes counts with it
            before = {agent for agent, at in self._singly.items() if look.looked_at - at < JOINING} - flagged
            number += len(before)
        must = number >= AT_LEAST and 2 * number > certain + doubtful
        may = number >= AT_LEAST and 2 * number > certain
        if is_young:
            must = may = True
        if sizes:
            if not may or sizes != [number] or singly:
                self._fault(look, f"told of incidents of {sizes} and singly of {len(singly)} when it flagged {number}")
            incident = incident or _Incident(look.looked_at)
            incident.size += len((flagged | before) - incident.members)
            incident.members |= flagged | before
            return incident
        if must or singly != sorted(flagged):
            self._fault(
                look, f"told singly of {len(singly)} when it flagged {number} of {certain} to {certain + doubtful}"
            )
        self._singly |= dict.fromkeys(flagged, look.looked_at)
        if incident is not None:  # who came back, and is silent by itself now, is in it no longer
            incident.size -= len(incident.members & flagged)
            incident.members -= flagged
        return incident

    def _check_recoveries(self, incident: _Incident, after: int, look: Look) -> None:
        """Find recoveries that were told singly although their incident is open."""
        for at, name in self._recoveries:
            if after < at <= look.at and self._numbers[name] in incident.members:
                self._fault(look, f"came after the recovery of {name} was told, whose incident is open")

    def _count_live(self, look: Look) -> tuple[int, int]:
        """Return how many agents are live for certain, and of how many that isn't sure."""
        certain = doubtful = 0
        for number, lives in self._lives.items():
            found = {self._is_live(number, lives, moment) for moment in (look.looked_at, look.at)}
            certain += found == {True}
            doubtful += len(found) > 1
        return certain, doubtful

    def _is_live(self, number: int, lives: Sequence[Life], moment: int) -> bool:
        """Return whether SQL has an agent as live, from what was stored by then."""
        kind = next((kind for stored_at, kind in reversed(self._stored[number]) if stored_at <= moment), "deregister")
        return kind == "register" and not any(start <= moment < end for life in lives for start, end in life.pauses)

    def _lifecycle(self) -> dict[int, list[tuple[int, str]]]:
        """Return each agent's registrations and ends in the order of the stream, with when each was first in SQL."""
        found: dict[int, dict[object, tuple[int, str]]] = defaultdict(dict)
        for arrival in self._plan.arrivals:
            if arrival.message.kind == "heartbeat" or arrival.stored_at is None:
                continue
            stored_at, kind = found[arrival.agent].get(arrival.message.id, (arrival.stored_at, arrival.message.kind))
            found[arrival.agent][arrival.message.id] = (min(stored_at, arrival.stored_at), kind)
        return {agent.number: list(found[agent.number].values()) for agent in self._plan.agents}
