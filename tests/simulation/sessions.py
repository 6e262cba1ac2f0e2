"""Sessions of the simulated agents, as the messages in Redis define them: begin, heartbeats, pauses and end."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import UUID

from simulation.model import Arrival, Plan
from simulation.timeline import FOREVER


@dataclass(slots=True)
class Session:
    """A session, from the registration that opened it to its end."""

    begin: int
    stored_at: int
    """When its registration was stored."""
    seen: list[tuple[int, int]]
    """Its registration and each heartbeat that was newer than all before: when Redis received it, and its own time."""
    settled_at: int
    """When everything up to its registration was stored."""
    heartbeats: list[Arrival]
    """All heartbeats, in the order of the stream; in the first session also those that overtook its registration."""
    end: int = FOREVER
    pauses: list[tuple[int, int]] = field(default_factory=list)

    def resumed_by(self, moment: int) -> list[int]:
        """List the ends of its pauses up to a time."""
        return [end for _, end in self.pauses if end <= moment]

    def seen_by(self, watermark: int) -> int:
        """Find the time of the newest heartbeat received before a time, or of the registration."""
        place = bisect_left(self.seen, (watermark, 0))
        return self.seen[max(0, place - 1)][1]


def find_sessions(plan: Plan) -> dict[int, list[Session]]:
    """Find the sessions of all agents, by the agents' numbers."""
    arrivals: dict[int, list[Arrival]] = defaultdict(list)
    for arrival in plan.arrivals:
        arrivals[arrival.agent].append(arrival)
    sessions = {agent.number: _sessions_of(arrivals[agent.number]) for agent in plan.agents}
    for pause in plan.pauses:
        ends = [end for end in (pause.until, pause.resumed_at) if end is not None]
        for session in sessions[pause.agent]:
            # Only an agent that is stored can be paused.
            if session.begin <= pause.at < session.end and session.stored_at <= pause.at:
                session.pauses.append((pause.at, min([*ends, session.end])))
    return sessions


def _sessions_of(arrivals: Sequence[Arrival]) -> list[Session]:
    sessions: list[Session] = []
    stored = _first_stored(arrivals)
    early: list[Arrival] = []
    settled_at = 0
    for arrival in arrivals:
        kind = arrival.message.kind
        is_open = bool(sessions) and sessions[-1].end == FOREVER
        if kind != "heartbeat":
            settled_at = max(settled_at, stored[arrival.message.id])
        if kind == "register" and not is_open:
            seen = [(arrival.received_at, arrival.received_at)]
            sessions.append(Session(arrival.received_at, stored[arrival.message.id], seen, settled_at, early))
            early = []
        elif kind == "deregister" and is_open:
            sessions[-1].end = arrival.received_at
        elif kind == "heartbeat" and not sessions:
            early.append(arrival)
        elif kind == "heartbeat" and is_open:
            sessions[-1].heartbeats.append(arrival)
            if arrival.seen_at > sessions[-1].seen[-1][1]:
                sessions[-1].seen.append((arrival.received_at, arrival.seen_at))
    return sessions


def _first_stored(arrivals: Sequence[Arrival]) -> dict[UUID, int]:
    """Find when each message was first stored; it may have been sent twice."""
    stored: dict[UUID, int] = {}
    for arrival in arrivals:
        stored_at, key = arrival.stored_at or FOREVER, arrival.message.id
        stored[key] = min(stored_at, stored.get(key, FOREVER))
    return stored
