"""Oracle of notices: one for an incident of half the fleet, one for its end, and one for each other silence.

It goes through the sweeps in order and counts live and silent agents at each. A change between a sweep's reading and
its decision may count or not, so the number of live agents has a certain and an uncertain part.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from simulation.model import Plan, Sweep
from simulation.oracle import Oracle
from simulation.sessions import Session
from simulation.verdicts import Change, Verdicts

SMALLEST = 5
CLOSED_AFTER = 86_400_000
JOINING = 120_000


class Notice(NamedTuple):
    """A notice: its kind, its time (of a sweep: when it read Redis), its agent, and how many agents it covers."""

    kind: str
    at: int
    agent: str | None
    agents: int | None


@dataclass(slots=True)
class _Incident:
    started_at: int
    members: set[int] = field(default_factory=set)
    """Agents that fell silent in it, except those that later fell silent again separately."""
    size: int = 0


def find_false_notices(plan: Plan, oracle: Oracle, verdicts: Verdicts, notices: Sequence[Notice]) -> list[str]:
    """Find wrong or missing notices; return them as sentences."""
    return [
        *_NoticeCheck(plan, oracle, verdicts.degraded, notices).find_errors(),
        *_check_stuck_notices(plan, verdicts, notices),
    ]


def _check_stuck_notices(plan: Plan, verdicts: Verdicts, notices: Sequence[Notice]) -> list[str]:
    """Find agents that were found stuck without exactly one notice, and notices without that."""
    names = {agent.number: agent.name for agent in plan.agents}
    found = [
        (names[number], plan.sweeps[change.sweeps].read_at)
        for number, changes in verdicts.stuck.items()
        for change in changes
        if change.holds
    ]
    sent = [(notice.agent or "", notice.at) for notice in notices if notice.kind == "stuck"]
    differing = (Counter(found) - Counter(sent)) + (Counter(sent) - Counter(found))
    return [f"{name} was found stuck at {at} without a notice, or the reverse" for name, at in differing]


class _NoticeCheck:
    """Compares the notices of all sweeps with what happened."""

    def __init__(
        self, plan: Plan, oracle: Oracle, changes: Mapping[int, Sequence[Change]], notices: Sequence[Notice]
    ) -> None:
        self._plan = plan
        self._sessions = {agent.number: oracle.sessions[agent.number] for agent in plan.agents}
        self._outage_ends = {end for _, end in oracle.outages}
        self._numbers = {agent.name: agent.number for agent in plan.agents}
        self._flagged: dict[int, set[int]] = defaultdict(set)
        self._cleared: dict[int, set[int]] = defaultdict(set)
        for number, changed in changes.items():
            for change in changed:
                (self._flagged if change.holds else self._cleared)[change.sweeps].add(number)
        self._at: dict[int, list[Notice]] = defaultdict(list)
        for notice in notices:
            self._at[notice.at].append(notice)
        self._recoveries = sorted((notice.at, notice.agent or "") for notice in notices if notice.kind == "recovered")
        self._stored = self._lifecycle()
        self._errors: list[str] = []
        self._last_flagged: dict[int, int] = {}
        self._reported: dict[int, int] = {}
        """When each silent agent with a notice of its own was flagged."""

    def find_errors(self) -> list[str]:
        """Check all sweeps in order."""
        silent: set[int] = set()
        incident: _Incident | None = None
        before = 0
        for place, sweep in enumerate(self._plan.sweeps):
            cleared = self._cleared[place]
            silent -= cleared
            self._reported = {number: at for number, at in self._reported.items() if number not in cleared}
            if incident is not None:
                self._check_recoveries(incident, before, sweep)
            incident = self._check_end(incident, silent, sweep)
            if flagged := self._flagged[place]:
                incident = self._check_flags(incident, flagged, sweep)
                silent |= flagged
                self._last_flagged |= dict.fromkeys(flagged, sweep.read_at)
            before = sweep.decided_at
        return self._errors

    def _note(self, sweep: Sweep, what: str) -> None:
        self._errors.append(f"the sweep that read Redis at {sweep.read_at} {what}")

    def _check_end(self, incident: _Incident | None, silent: set[int], sweep: Sweep) -> _Incident | None:
        """Check that the end of an incident is sent exactly when half of its agents have recovered."""
        was_sent = any(notice.kind == "incident_over" for notice in self._at[sweep.read_at])
        left = silent & incident.members if incident is not None else set()
        is_over = (
            incident is not None
            and sweep.read_at not in self._outage_ends
            and (
                2 * len(left) <= incident.size
                or sweep.read_at - max(self._last_flagged[number] for number in left) >= CLOSED_AFTER
            )
        )
        if was_sent != is_over:
            self._note(
                sweep, "sent the end of an incident too early" if was_sent else "didn't send the end of an incident"
            )
        return None if was_sent else incident

    def _check_flags(self, incident: _Incident | None, flagged: set[int], sweep: Sweep) -> _Incident | None:
        """Check that flagged agents have one notice each, or one for the incident that they are."""
        notices = self._at[sweep.read_at]
        sizes = [notice.agents for notice in notices if notice.kind == "incident"]
        single = sorted(self._numbers[notice.agent or ""] for notice in notices if notice.kind == "degraded")
        certain, doubtful = self._count_live(sweep)
        number, before = len(flagged), set()
        is_young = incident is not None and sweep.read_at - incident.started_at < JOINING
        if not is_young:  # agents flagged in the last two minutes count, too
            before = {agent for agent, at in self._reported.items() if sweep.read_at - at < JOINING} - flagged
            number += len(before)
        must = number >= SMALLEST and 2 * number > certain + doubtful
        may = number >= SMALLEST and 2 * number > certain
        if is_young:
            must = may = True
        if sizes:
            if not may or sizes != [number] or single:
                self._note(
                    sweep, f"sent incidents of {sizes} and {len(single)} single notices when it flagged {number}"
                )
            incident = incident or _Incident(sweep.read_at)
            incident.size += len((flagged | before) - incident.members)
            incident.members |= flagged | before
            return incident
        if must or single != sorted(flagged):
            self._note(
                sweep,
                f"sent {len(single)} single notices when it flagged {number} of {certain} to {certain + doubtful}",
            )
        self._reported |= dict.fromkeys(flagged, sweep.read_at)
        if incident is not None:  # agents that recovered and fell silent separately leave it
            incident.size -= len(incident.members & flagged)
            incident.members -= flagged
        return incident

    def _check_recoveries(self, incident: _Incident, after: int, sweep: Sweep) -> None:
        """Check that no recovery was sent for a member of an open incident."""
        for at, name in self._recoveries:
            if after < at <= sweep.decided_at and self._numbers[name] in incident.members:
                self._note(sweep, f"followed a notice of the recovery of {name}, whose incident is open")

    def _count_live(self, sweep: Sweep) -> tuple[int, int]:
        """Count the agents that are certainly live, and those that may be."""
        certain = doubtful = 0
        for number, sessions in self._sessions.items():
            found = {self._is_live(number, sessions, moment) for moment in (sweep.read_at, sweep.decided_at)}
            certain += found == {True}
            doubtful += len(found) > 1
        return certain, doubtful

    def _is_live(self, number: int, sessions: Sequence[Session], moment: int) -> bool:
        """Return whether an agent was live by everything stored up to a time."""
        kind = next((kind for stored_at, kind in reversed(self._stored[number]) if stored_at <= moment), "deregister")
        return kind == "register" and not any(
            start <= moment < end for session in sessions for start, end in session.pauses
        )

    def _lifecycle(self) -> dict[int, list[tuple[int, str]]]:
        """List each agent's registrations and ends in the order of the stream, with the time of storing."""
        found: dict[int, dict[object, tuple[int, str]]] = defaultdict(dict)
        for arrival in self._plan.arrivals:
            if arrival.message.kind == "heartbeat" or arrival.stored_at is None:
                continue
            stored_at, kind = found[arrival.agent].get(arrival.message.id, (arrival.stored_at, arrival.message.kind))
            found[arrival.agent][arrival.message.id] = (min(stored_at, arrival.stored_at), kind)
        return {agent.number: list(found[agent.number].values()) for agent in self._plan.agents}
