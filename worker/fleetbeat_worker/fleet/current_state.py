"""What a session's row means at a moment, to whoever looks: its state, what it missed, and when it is degraded."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import Row

from fleetbeat_worker.downtime.maintenance import MaintenanceState
from fleetbeat_worker.rules.deadlines import DeadlineRule, Unwatched
from fleetbeat_worker.rules.liveness import (
    MISSED_COUNTED,
    UNJUDGEABLE,
    Promise,
    State,
    missed_intervals,
    promise_of,
    shown_state,
    silent_since,
)
from fleetbeat_worker.rules.spans import from_milliseconds, to_milliseconds

WATCHED = frozenset({State.PENDING, State.OK})
"""States that time can change."""


@dataclass(frozen=True, slots=True)
class Judge:
    """Judges rows of `store.agents` as of a moment."""

    as_of: datetime | None
    missed_limit: int
    """The fleet's; an agent's own goes first."""
    maintenance: MaintenanceState
    unwatched: Unwatched
    _rules: dict[Promise, DeadlineRule] = field(default_factory=dict)  # most agents of a fleet promise the same

    def state(self, row: Row[Any]) -> State:
        """Return the state to show."""
        stored = State(row.state)
        # Whatever isn't ok is shown as it is stored; of what is ok, one missed interval says all.
        return stored if stored is not State.OK else shown_state(stored, self._count(row, 1) or 0)

    def missed(self, row: Row[Any], state: State) -> int | None:
        """Return how many intervals an agent missed; None when nothing is known of any moment."""
        if state in {State.ENDED, State.PAUSED}:
            return 0
        return self._count(row, MISSED_COUNTED)

    def clock(self, row: Row[Any]) -> tuple[datetime, datetime]:
        """Return when an agent's clock started, and its deadline.

        What isn't watched counts, also where no sweep has moved the deadline yet.
        """
        since = silent_since(row.registered_at, row.last_seen_at, row.resumed_at)
        if row.state not in WATCHED or not self.unwatched.is_after(to_milliseconds(since)):
            return since, row.deadline_at
        promise = promise_of(row)
        if promise not in self._rules:
            self._rules[promise] = DeadlineRule(promise, self.missed_limit, self.unwatched)
        start, deadline = self._rules[promise].clock(to_milliseconds(since))
        return from_milliseconds(start), max(from_milliseconds(deadline), row.deadline_at)

    def _count(self, row: Row[Any], count_to: int) -> int | None:
        if self.as_of is None:
            return None
        as_of, window = self.as_of, self.maintenance.running
        if window is not None and row.state in WATCHED:
            as_of = min(as_of, window.starts_at)  # in maintenance the clocks stand still
        promise, since = promise_of(row), silent_since(row.registered_at, row.last_seen_at, row.resumed_at)
        try:
            missed = missed_intervals(promise, since, row.deadline_at, as_of, self.missed_limit, count_to=count_to)
            clock = self.clock(row) if missed else (since, row.deadline_at)
            if clock == (since, row.deadline_at):  # what isn't written to the deadline yet only makes it later
                return missed
            since, deadline_at = clock
            return missed_intervals(promise, since, deadline_at, as_of, self.missed_limit, count_to=count_to)
        except UNJUDGEABLE:
            return None  # the next sweep sets it aside, or has done so: no reason to show nobody
