"""Store: the interface of the code under test, and what its implementations share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from fleetbeat_worker.broker.inbox import Horizon
from fleetbeat_worker.broker.pulse import Pulse
from fleetbeat_worker.ingest.batch import Batch
from fleetbeat_worker.ingest.session_state import AgentRecord
from fleetbeat_worker.rules.enums import EventType
from fleetbeat_worker.rules.liveness import State
from fleetbeat_worker.rules.maintenance_windows import WindowRule
from fleetbeat_worker.rules.spans import from_milliseconds
from simulation.commands import MaintenanceRule
from simulation.model import Arrival, Plan

WATCHED = (State.PENDING, State.OK)
_ENDS_SILENCE = frozenset({EventType.RECOVERED, EventType.DEREGISTERED})
_ENDS_STUCK = frozenset({EventType.UNSTUCK, EventType.DEREGISTERED, EventType.REGISTERED})


class Names(NamedTuple):
    """Names of agents that became degraded or stuck, or ceased to be so."""

    degraded: Sequence[str] = ()
    stuck: Sequence[str] = ()


class Store(Protocol):
    """Keeps a fleet and judges it."""

    def commit(self, now: int, arrivals: Sequence[Arrival]) -> Names:
        """Store entries in one transaction; return the agents that are no longer degraded or stuck."""

    def put_right(self, now: int) -> Names:
        """Apply what overtook its registration; return the agents that are no longer degraded or stuck."""

    def sweep(self, horizon: Horizon, pulse: Pulse) -> Names:
        """Decide by what was read from Redis; return the agents that are now degraded or stuck."""

    def pause(self, now: int, name: str, until: int | None) -> Names:
        """Pause an agent; return it if it is live, as it is no longer degraded."""

    def resume(self, now: int, name: str) -> None:
        """Resume an agent."""

    def start_maintenance(self, position: int, rule: MaintenanceRule) -> None:
        """Add a rule of maintenance, by its position in the plan."""

    def end_maintenance(self, position: int, now: int) -> None:
        """End a rule of maintenance."""

    def finish(self) -> None:
        """Write what is still missing after the last commit or sweep."""


def overtaken_for(plan: Plan) -> int:
    """Return how long after it was refused, in milliseconds, a message may be put right."""
    return max(90, 3 * plan.sweep_seconds) * 1000


def earliest_stuck(record: AgentRecord, limit: int | None) -> int | None:
    """Return the earliest time at which an agent can be stuck; None if it can't be in its current state."""
    promise = record.promise
    if limit is None or promise.interval_seconds is None or record.state is not State.OK:
        return None
    if record.changed_at is None or record.stuck_at is not None:
        return None
    since = max(record.changed_at, record.state_changed_at, record.resumed_at or 0)
    return since + round((limit * promise.interval_seconds + promise.grace_seconds) * 1000)


def window_rule(rule: MaintenanceRule) -> WindowRule:
    """Convert a rule of the plan to one of the real code."""
    return WindowRule(
        from_milliseconds(rule.starts_at),
        None if rule.ends_at is None else from_milliseconds(rule.ends_at),
        rule.schedule,
        rule.time_zone,
        rule.duration_seconds,
    )


def cleared(batch: Batch) -> Names:
    """List the agents that a batch leaves neither degraded nor stuck: they beat, changed, ended or registered.

    The list may contain agents that were not degraded or stuck before.
    """
    named = [(event["agent_name"], EventType(event["type"]), event["session_id"]) for event in batch.events]
    return Names(
        [name for name, kind, key in named if kind in _ENDS_SILENCE and batch.agents[key].state is not State.DEGRADED],
        [name for name, kind, key in named if kind in _ENDS_STUCK and batch.agents[key].stuck_at is None],
    )
