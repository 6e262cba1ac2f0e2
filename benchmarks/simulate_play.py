"""Playing a plan: a store is told what happens in the order in which it happens, and tells what was said of whom."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict, deque
from typing import TYPE_CHECKING, Protocol

from simulate_commands import Deed, commands
from simulate_oracle import Change

from fleetbeat_shared.liveness import State
from fleetbeat_shared.maintenance import WindowRule
from fleetbeat_worker.column_types import from_milliseconds, to_milliseconds
from fleetbeat_worker.inbox import Horizon
from fleetbeat_worker.tables import EventType

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from simulate_commands import Command, MaintenanceRule
    from simulate_plan import Arrival, Plan

    from fleetbeat_worker.batch import Batch


WATCHED = (State.PENDING, State.OK)


class Store(Protocol):
    """What keeps the fleet and judges it. The answers are names of agents."""

    def commit(self, now: int, arrivals: Sequence[Arrival]) -> list[str]:
        """Store entries in one transaction; return who is degraded no longer."""

    def put_right(self, now: int) -> list[str]:
        """Apply what overtook its registration; return who is degraded no longer."""

    def sweep(self, now: int, watermark: int, backlog: int) -> list[str]:
        """Decide by what was seen of Redis at a time; return who is degraded."""

    def pause(self, now: int, name: str, until: int | None) -> list[str]:
        """Pause an agent; return it if it is live: it is degraded no longer."""

    def resume(self, now: int, name: str) -> None:
        """Resume an agent."""

    def start_maintenance(self, place: int, rule: MaintenanceRule) -> None:
        """Take note of maintenance, that isn't ended yet."""

    def end_maintenance(self, place: int, now: int) -> None:
        """End it."""

    def finish(self) -> None:
        """Take note that nothing more will come."""


def play(plan: Plan, store: Store) -> dict[int, list[Change]]:
    """Let everything happen; return what was said of each agent, by its number."""
    numbers = {agent.name: agent.number for agent in plan.agents}
    changes: dict[int, list[Change]] = defaultdict(list)
    horizons: dict[int, Horizon] = {}
    deeds = commands(plan.pauses, plan.maintenance)
    inbox = _Inbox(plan)
    decided = 0

    def say(names: Iterable[str], *, is_degraded: bool) -> None:
        for name in names:
            changes[numbers[name]].append(Change(decided, is_degraded))

    for moment, kind, what in _in_order(plan, deeds):
        if kind == _COMMIT:
            say(store.commit(moment, plan.commits[what].arrivals), is_degraded=False)
        elif kind == _LOOK:
            say(store.put_right(moment), is_degraded=False)
            horizons[what] = inbox.horizon(moment)
        elif kind == _COMMAND:
            say(obey(deeds[what], plan, store), is_degraded=False)
        else:
            horizon = horizons.pop(what)
            watermark = to_milliseconds(horizon.watermark or horizon.now)
            say(store.sweep(to_milliseconds(horizon.now), watermark, horizon.backlog), is_degraded=True)
            decided += 1
    store.finish()
    return changes


def obey(command: Command, plan: Plan, store: Store) -> list[str]:
    """Do what somebody asks for; return who is degraded no longer."""
    if command.deed in {Deed.PAUSE, Deed.RESUME}:
        pause = plan.pauses[command.place]
        name = plan.agents[pause.agent].name
        if command.deed is Deed.PAUSE:
            return store.pause(command.at, name, pause.until)
        store.resume(command.at, name)
    elif command.deed is Deed.START_MAINTENANCE:
        store.start_maintenance(command.place, plan.maintenance[command.place])
    else:
        store.end_maintenance(command.place, command.at)
    return []


_LOOK, _COMMIT, _DECIDE, _COMMAND = range(4)


def _in_order(plan: Plan, deeds: Sequence[Command]) -> list[tuple[int, int, int]]:
    """Return all that happens, as moment, kind and place in the plan's list."""
    commits = [(commit.at, _COMMIT, place) for place, commit in enumerate(plan.commits)]
    looks = [(look.looked_at, _LOOK, place) for place, look in enumerate(plan.looks)]
    decisions = [(look.at, _DECIDE, place) for place, look in enumerate(plan.looks)]
    return sorted([*commits, *looks, *decisions, *((deed.at, _COMMAND, place) for place, deed in enumerate(deeds))])


class _Inbox:
    """The simulated stream: what arrived and isn't acknowledged yet."""

    def __init__(self, plan: Plan) -> None:
        self._arrivals = iter(plan.arrivals)
        self._next = next(self._arrivals, None)
        self._held: deque[Arrival] = deque()
        self._removed = sorted(each.removed_at for each in plan.arrivals if each.removed_at is not None)
        self._arrived = 0

    def horizon(self, moment: int) -> Horizon:
        """Return what `Inbox.horizon` would; moments come in their order."""
        while self._next is not None and self._next.received_at <= moment:
            self._held.append(self._next)
            self._next = next(self._arrivals, None)
            self._arrived += 1
        while self._held and self._held[0].removed_at is not None and self._held[0].removed_at <= moment:
            self._held.popleft()
        oldest = self._held[0].received_at if self._held else moment
        backlog = self._arrived - bisect_right(self._removed, moment)
        return Horizon(from_milliseconds(moment), from_milliseconds(oldest), backlog)


def overtaken_for(plan: Plan) -> int:
    """Return how long after it was refused, in milliseconds, a message may be put right."""
    return max(90, 3 * plan.sweep_seconds) * 1000


def window_rule(rule: MaintenanceRule) -> WindowRule:
    """Return what the real rules go by."""
    return WindowRule(
        from_milliseconds(rule.starts_at),
        None if rule.ends_at is None else from_milliseconds(rule.ends_at),
        rule.schedule,
        rule.time_zone,
        rule.duration_seconds,
    )


def freed(batch: Batch) -> list[str]:
    """Return who is degraded no longer: it was heard, or it ended, or it was opened anew."""
    up = {EventType.RECOVERED.value, EventType.DEREGISTERED.value}
    events = (event for event in batch.events if event["type"] in up)
    return [event["agent_name"] for event in events if batch.agents[event["session_id"]].state is not State.DEGRADED]
