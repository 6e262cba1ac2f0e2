"""Playing a plan: passes each commit, sweep and command to a store in order, and collects its verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

from fleetbeat_worker.broker.inbox import Horizon
from fleetbeat_worker.broker.pulse import Pulse
from simulation.commands import Action, Command, list_commands
from simulation.model import Plan
from simulation.simulated_redis import SimulatedInbox, SimulatedPulse
from simulation.store import Names, Store
from simulation.verdicts import Change, Verdicts


class _Step(IntEnum):
    """Kind of a step; steps of the same time are done in this order."""

    READ = 0
    COMMIT = 1
    DECIDE = 2
    COMMAND = 3


def play(plan: Plan, store: Store) -> Verdicts:
    """Play a plan on a store; return what the store said about each agent."""
    numbers = {agent.name: agent.number for agent in plan.agents}
    verdicts = Verdicts()
    readings: dict[int, tuple[Horizon, Pulse]] = {}
    commands = list_commands(plan.pauses, plan.maintenance)
    inbox, pulse = SimulatedInbox(plan), SimulatedPulse(plan)
    decided = 0

    def note(names: Names, *, holds: bool) -> None:
        for changes, named in ((verdicts.degraded, names.degraded), (verdicts.stuck, names.stuck)):
            for name in named:
                before = changes.setdefault(numbers[name], [])
                if holds or (before and before[-1].holds):
                    before.append(Change(decided, holds))

    for moment, step, position in _steps(plan, commands):
        now = plan.clock.at(moment)
        if step == _Step.COMMIT:
            note(store.commit(now, plan.commits[position].arrivals), holds=False)
        elif step == _Step.READ:
            note(store.put_right(now), holds=False)
            readings[position] = inbox.horizon(moment), pulse.read(moment)
        elif step == _Step.COMMAND:
            note(_execute(commands[position], plan, store, now), holds=False)
        else:
            note(store.sweep(*readings.pop(position)), holds=True)
            decided += 1
    store.finish()
    return verdicts


def _execute(command: Command, plan: Plan, store: Store, now: int) -> Names:
    """Execute a command; return the agents that are no longer degraded."""
    if command.action in {Action.PAUSE, Action.RESUME}:
        pause = plan.pauses[command.position]
        name = plan.agents[pause.agent].name
        if command.action is Action.PAUSE:
            return store.pause(now, name, pause.until)
        store.resume(now, name)
    elif command.action is Action.START_MAINTENANCE:
        store.start_maintenance(command.position, plan.maintenance[command.position])
    else:
        store.end_maintenance(command.position, now)
    return Names()


def _steps(plan: Plan, commands: Sequence[Command]) -> list[tuple[int, int, int]]:
    """List all steps in order: their times, kinds and positions in the plan's lists."""
    commits = [(commit.at, _Step.COMMIT, position) for position, commit in enumerate(plan.commits)]
    readings = [(sweep.read_at, _Step.READ, position) for position, sweep in enumerate(plan.sweeps)]
    decisions = [(sweep.decided_at, _Step.DECIDE, position) for position, sweep in enumerate(plan.sweeps)]
    executed = [(command.at, _Step.COMMAND, position) for position, command in enumerate(commands)]
    return sorted([*commits, *readings, *decisions, *executed])
