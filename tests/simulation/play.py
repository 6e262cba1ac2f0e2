"""Playing a plan: a store is told what happens in the order in which it happens, and tells what was said of whom."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from fleetbeat_shared.redis_keys import INBOX, SESSIONS
from fleetbeat_worker.broker.entries import Entry, arrival as arrived, known_by
from fleetbeat_worker.broker.inbox import Horizon
from fleetbeat_worker.broker.pulse import Pulse
from fleetbeat_worker.ingest.changeset import Changeset
from fleetbeat_worker.ingest.session_state import AgentRecord
from fleetbeat_worker.rules.enums import EventType
from fleetbeat_worker.rules.liveness import State
from fleetbeat_worker.rules.maintenance_windows import WindowRule
from fleetbeat_worker.rules.spans import from_milliseconds
from simulation.commands import Command, Deed, MaintenanceRule, commands
from simulation.model import Arrival, Plan
from simulation.oracle import Change, Said
from simulation.pulse import Pulses

WATCHED = (State.PENDING, State.OK)


class Names(NamedTuple):
    """Names of agents: of which it is said that they are degraded, or stuck; or that they are so no longer."""

    silent: Sequence[str] = ()
    stuck: Sequence[str] = ()


class Store(Protocol):
    """What keeps the fleet and judges it."""

    def commit(self, now: int, arrivals: Sequence[Arrival]) -> Names:
        """Store heartbeats in one transaction; return who is degraded, or stuck, no longer."""

    def advance(self, now: int, arrivals: Sequence[Arrival]) -> Names:
        """Apply entries of the lane; return who is degraded, or stuck, no longer."""

    def sweep(self, seen: Horizon, pulse: Pulse) -> Names:
        """Decide by what was seen of Redis at a time; return who is degraded, and who is stuck."""

    def pause(self, now: int, name: str, until: int | None) -> Names:
        """Pause an agent; return it if it is live: it is degraded no longer."""

    def resume(self, now: int, name: str) -> None:
        """Resume an agent."""

    def start_maintenance(self, place: int, rule: MaintenanceRule) -> None:
        """Take note of maintenance, that isn't ended yet."""

    def end_maintenance(self, place: int, now: int) -> None:
        """End it."""

    def finish(self) -> None:
        """Take note that nothing more will come."""


def play(plan: Plan, store: Store) -> Said:
    """Let everything happen; return what was said of each agent."""
    numbers = {agent.name: agent.number for agent in plan.agents}
    said = Said()
    horizons: dict[int, tuple[Horizon, Pulse]] = {}
    deeds = commands(plan.pauses, plan.maintenance)
    inbox, pulses = _Streams(plan), Pulses(plan.start, plan.stops, plan.clock)
    decided = 0

    def say(names: Names, *, holds: bool) -> None:
        for changes, named in ((said.silent, names.silent), (said.stuck, names.stuck)):
            for name in named:
                before = changes.setdefault(numbers[name], [])
                if holds or (before and before[-1].holds):
                    before.append(Change(decided, holds))

    for moment, kind, what in _in_order(plan, deeds):
        shown = plan.clock.at(moment)
        if kind == _COMMIT:
            say(store.commit(shown, plan.commits[what].arrivals), holds=False)
        elif kind == _ADVANCE:
            say(store.advance(shown, plan.advances[what].arrivals), holds=False)
        elif kind == _LOOK:
            horizons[what] = inbox.horizon(moment), pulses.at(moment)
        elif kind == _COMMAND:
            say(obey(deeds[what], plan, store, shown), holds=False)
        else:
            horizon, pulse = horizons.pop(what)
            say(store.sweep(horizon, pulse), holds=True)
            decided += 1
    store.finish()
    return said


def obey(command: Command, plan: Plan, store: Store, now: int) -> Names:
    """Do what somebody asks for; return who is degraded no longer."""
    if command.deed in {Deed.PAUSE, Deed.RESUME}:
        pause = plan.pauses[command.place]
        name = plan.agents[pause.agent].name
        if command.deed is Deed.PAUSE:
            return store.pause(now, name, pause.until)
        store.resume(now, name)
    elif command.deed is Deed.START_MAINTENANCE:
        store.start_maintenance(command.place, plan.maintenance[command.place])
    else:
        store.end_maintenance(command.place, now)
    return Names()


_ADVANCE, _LOOK, _COMMIT, _DECIDE, _COMMAND = range(5)
_HEARD = frozenset({EventType.RECOVERED, EventType.DEREGISTERED})
_UNSTUCK = frozenset({EventType.UNSTUCK, EventType.DEREGISTERED, EventType.REGISTERED})


def _in_order(plan: Plan, deeds: Sequence[Command]) -> list[tuple[int, int, int]]:
    """Return all that happens, as moment, kind and place in the plan's list."""
    commits = [(commit.at, _COMMIT, place) for place, commit in enumerate(plan.commits)]
    commits += [(advance.at, _ADVANCE, place) for place, advance in enumerate(plan.advances)]
    looks = [(look.looked_at, _LOOK, place) for place, look in enumerate(plan.looks)]
    decisions = [(look.at, _DECIDE, place) for place, look in enumerate(plan.looks)]
    return sorted([*commits, *looks, *decisions, *((deed.at, _COMMAND, place) for place, deed in enumerate(deeds))])


class _Streams:
    """The simulated inbox and lane: what arrived and isn't removed yet."""

    def __init__(self, plan: Plan) -> None:
        self._clock = plan.clock
        self._coming = deque(plan.arrivals)
        self._held: dict[str, deque[Arrival]] = {INBOX: deque(), SESSIONS: deque()}
        self._removed = sorted(each.removed_at for each in plan.arrivals if each.removed_at is not None)
        self._arrived = 0

    def horizon(self, moment: int) -> Horizon:
        """Return what `Inbox.horizon` would; moments come in their order."""
        while self._coming and self._coming[0].received_at <= moment:
            arrival = self._coming.popleft()
            self._held[arrival.stream].append(arrival)
            self._arrived += 1
        now = self._clock.at(moment)
        watermark: int | None = now
        for held in self._held.values():
            while held and held[0].removed_at is not None and held[0].removed_at <= moment:
                held.popleft()
            known = known_by(held[0].entry_id, now) if held else now
            watermark = None if watermark is None or known is None else min(watermark, known)
        backlog = self._arrived - bisect_right(self._removed, moment)
        return Horizon(from_milliseconds(now), None if watermark is None else from_milliseconds(watermark), backlog)


def entry_of(arrival: Arrival, now: int, wire: bytes = b"") -> Entry:
    """Make the entry that a worker has of an arrival that it reads by `now`."""
    return Entry(arrival.entry_id, arrival.stream, wire, *arrived(arrival.entry_id, now), arrival.message)


def stuck_from(record: AgentRecord, limit: int | None) -> int | None:
    """Return before when an agent can't be stuck, whatever else is said of it; None if it can't be as it is."""
    promise = record.promise
    if limit is None or promise.interval_seconds is None or record.state is not State.OK:
        return None
    if record.changed_at is None or record.stuck_at is not None:
        return None
    since = max(record.changed_at, record.state_changed_at, record.resumed_at or 0)
    return since + round((limit * promise.interval_seconds + promise.grace_seconds) * 1000)


def window_rule(rule: MaintenanceRule) -> WindowRule:
    """Return what the real rules go by."""
    return WindowRule(
        from_milliseconds(rule.starts_at),
        None if rule.ends_at is None else from_milliseconds(rule.ends_at),
        rule.schedule,
        rule.time_zone,
        rule.duration_seconds,
    )


def freed(batch: Changeset) -> Names:
    """Return who is degraded, or stuck, no longer: it was heard, or said something else, or ended, or was opened anew.

    Of some that are named it was never said.
    """
    named = [(event["agent_name"], EventType(event["type"]), event["session_id"]) for event in batch.events]
    return Names(
        [name for name, kind, key in named if kind in _HEARD and batch.agents[key].state is not State.DEGRADED],
        [name for name, kind, key in named if kind in _UNSTUCK and batch.agents[key].stuck_at is None],
    )
