"""What stands beside an agent's state: whether it is stuck, and whether it flaps, with the sums behind both.

Pure. Of now the session's row tells, of before the events: a moment's changes come in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import Row

from fleetbeat_shared.time_text import exact
from fleetbeat_worker.explain.deadline_sum import Arithmetic, Start, work_out
from fleetbeat_worker.rules.anomalies import DOING, WINDOW_INTERVALS, window_start
from fleetbeat_worker.rules.deadlines import Unwatched
from fleetbeat_worker.rules.enums import EventType
from fleetbeat_worker.rules.liveness import Promise
from fleetbeat_worker.rules.spans import from_milliseconds, parse_time, to_milliseconds
from fleetbeat_worker.rules.timeline import Change

OF_A_STANDING = (EventType.STUCK, EventType.UNSTUCK, EventType.FLAPPING, EventType.CALM)
"""What says that an agent is stuck, or flaps, and that it is over."""

SWINGS = frozenset({EventType.DEGRADED, EventType.RECOVERED})
"""The changes that make an agent flap."""

_ENDS = {EventType.STUCK: EventType.UNSTUCK, EventType.FLAPPING: EventType.CALM}


@dataclass(frozen=True, slots=True)
class Stuck:
    """Since when an agent says the same, and until when it may."""

    since: datetime | None
    """Since when it is stuck; None: it isn't."""
    changed_at: datetime
    says: dict[str, str]
    """What it says, unchanged since `changed_at`: of its progress, work item and status."""
    limit: int
    """After how many intervals without a change it is stuck."""
    sum: Arithmetic
    """How the moment comes about at which it is stuck if it says nothing new."""

    def lines(self) -> list[str]:
        """Return it as `explain` prints it."""
        said = "; ".join(f"{name.removesuffix('_id').replace('_', ' ')}: {value}" for name, value in self.says.items())
        same = f"says the same since {exact(self.changed_at)} UTC" + (f" ({said})" if said else "")
        if self.since is None:
            head = f"no; {same}, and is stuck at {exact(self.sum.deadline_at)} UTC unless that changes"
        else:
            head = f"STUCK since {exact(self.since)} UTC: it {same}"
        tail = [] if self.since is None else ["it ends with the first heartbeat that says something else"]
        return [head, *self.sum.lines(), *tail]

    def to_json(self) -> dict[str, Any]:
        """Return it as `--json` prints it."""
        return {
            "is_stuck": self.since is not None,
            "since": self.since,
            "changed_at": self.changed_at,
            "says": self.says,
            "stuck_after": self.limit,
            "counts_from": self.sum.start.at,
            "counts_from_is": self.sum.start.why,
            "stuck_at": self.sum.deadline_at,
            "text": self.lines(),
        }


@dataclass(frozen=True, slots=True)
class Flapping:
    """How often an agent changed its state of late, while single changes aren't told."""

    since: datetime
    changes: int
    """How often it became degraded or recovered within the window."""
    window_from: datetime
    """From when on changes count: its last twenty intervals."""
    limit: int
    """With more changes than that it flaps."""
    calm_at: datetime | None
    """When it is calm if it keeps its state until then; None: with the next sweep."""

    def lines(self) -> list[str]:
        """Return it as `explain` prints it."""
        many = "1 change" if self.changes == 1 else f"{self.changes} changes"
        window = f"its last {WINDOW_INTERVALS} intervals (since {exact(self.window_from)} UTC)"
        calm = f"at {exact(self.calm_at)} UTC" if self.calm_at else "with the next sweep"
        return [
            f"FLAPPING since {exact(self.since)} UTC: {many} between silent and heard in {window};",
            f"with more than {self.limit} it flaps, and its single changes are told no longer",
            f"calm {calm} if it keeps its state until then",
        ]

    def to_json(self) -> dict[str, Any]:
        """Return it as `--json` prints it."""
        return {
            "since": self.since,
            "changes": self.changes,
            "window_from": self.window_from,
            "more_changes_than": self.limit,
            "calm_at": self.calm_at,
            "text": self.lines(),
        }


@dataclass(frozen=True, slots=True)
class Standing:
    """What is known of a session at a moment, beside its state."""

    agent: Row[Any]
    """Its row of now, with all columns of `agents`."""
    changes: Sequence[Change]
    """What changed for it by the moment, with those of `OF_A_STANDING`."""
    promise: Promise
    as_of: datetime
    is_now: bool

    def stuck(self, limit: int | None, unwatched: Unwatched) -> Stuck | None:
        """Return whether the agent is stuck, or when it would be; None where it never is, or nothing tells.

        `limit`: after how many intervals it is stuck.
        """
        if limit is None or self.promise.interval_seconds is None:
            return None
        told = _open(self.changes, EventType.STUCK)
        since = self._since("stuck_at", told)
        if since is not None and told is not None:
            changed_at, says = parse_time(told.detail.get("changed_at")), told.detail
        else:
            changed_at, says = self.agent.changed_at, {name: getattr(self.agent, name) for name in DOING}
        if changed_at is None or changed_at > self.as_of:  # what it said before that isn't kept
            return None
        until = to_milliseconds(since or self.as_of)
        before = [change for change in self.changes if change.at <= until]
        start = max(_starts(changed_at, before), key=lambda found: found.at)
        found = work_out(start, replace(self.promise, missed_limit=limit), limit, unwatched)
        said = {name: str(says[name]) for name in DOING if says.get(name)}
        return Stuck(since, changed_at, said, limit, found)

    def flapping(self, limit: int) -> Flapping | None:
        """Return why the agent flaps; None if it doesn't. `limit`: how many changes are too few for that."""
        since = self._since("flapping_at", _open(self.changes, EventType.FLAPPING))
        if since is None:
            return None
        start = window_start(self.promise, self.as_of)
        swings = sorted(from_milliseconds(change.at) for change in self.changes if change.kind in SWINGS)
        within = [moment for moment in swings if moment > start]
        calm_at = within[-limit - 1] + (self.as_of - start) if len(within) > limit else None
        return Flapping(since, len(within), start, limit, calm_at)

    def _since(self, column: str, told: Change | None) -> datetime | None:
        """Return since when something holds: of now the row tells, of before the event."""
        if self.is_now:
            moment: datetime | None = getattr(self.agent, column)
            return moment
        return from_milliseconds(told.at) if told else None


def _starts(changed_at: datetime, changes: Sequence[Change]) -> list[Start]:
    """Return the moments from which the time without a change may count; that of a pause before another's."""
    found = [Start(changed_at, "last change")]
    for kind, why in ((EventType.RESUMED, "end of the pause"), (EventType.RECOVERED, "return from its silence")):
        found += [Start(from_milliseconds(change.at), why) for change in changes if change.kind is kind]
    return found


def _open(changes: Sequence[Change], opens: EventType) -> Change | None:
    """Return the last change that opens something if nothing ended it since: what is its own end, or the session's."""
    for change in reversed(changes):
        if change.kind is opens:
            return change
        if change.kind in {_ENDS[opens], EventType.DEREGISTERED}:
            return None
    return None
