"""How a deadline came about, written out: from when on silence counted, what was promised, and what moved it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from typing import Any

from fleetbeat_shared.schedules import slots_after
from fleetbeat_shared.time_text import amount, exact
from fleetbeat_worker.rules.deadlines import DeadlineRule, Unwatched
from fleetbeat_worker.rules.liveness import Promise, extend_over_outages
from fleetbeat_worker.rules.spans import from_milliseconds, subtract, to_milliseconds

_NAMES = {"outage": "the outage", "maintenance": "maintenance"}


@dataclass(frozen=True, slots=True)
class Start:
    """From when on silence counts."""

    at: datetime
    why: str
    """What happened then: `last heartbeat`, `registration`, `end of the pause`, `end of maintenance`."""


@dataclass(frozen=True, slots=True)
class Move:
    """An outage, or maintenance, that moved a deadline."""

    why: str
    """`outage` or `maintenance`."""
    started_at: datetime
    ended_at: datetime
    seconds: float
    """By how much: only the part after the start counts."""


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """How a deadline came about."""

    start: Start
    promise: Promise
    missed_limit: int
    slots: tuple[datetime, ...]
    """Of a schedule: the slots after the start that may be missed; the last one and the grace make the deadline."""
    base_at: datetime
    """The deadline before anything moved it."""
    moves: tuple[Move, ...]
    other_seconds: float
    """By how much more it was moved, for reasons that aren't stored any more."""
    deadline_at: datetime
    late_at: datetime
    """When one interval or slot is missed, moved as the deadline is."""

    def lines(self) -> list[str]:
        """Return it as people write a sum."""
        promise = self.promise
        grace = f"{amount(promise.grace_seconds)} grace"
        first = f"{self.start.why} {exact(self.start.at)}"
        if promise.interval_seconds is not None:
            first += f" + {self.missed_limit} x {amount(promise.interval_seconds)} + {grace}"
        else:
            slots = ", ".join(f"{slot:%Y-%m-%d %H:%M}" for slot in self.slots)
            first += f"; slots after it: {slots}; + {grace}"
        lines = [f"{first} = {exact(self.base_at)}"]
        lines += [
            f"+ {amount(move.seconds)} for {_NAMES[move.why]} from {exact(move.started_at)} to {exact(move.ended_at)}"
            for move in self.moves
        ]
        if self.other_seconds:
            sign = "+" if self.other_seconds > 0 else "-"
            lines.append(f"{sign} {amount(abs(self.other_seconds))} for what isn't stored any more")
        return lines if len(lines) == 1 else [*lines, f"= {exact(self.deadline_at)}"]

    def to_json(self) -> dict[str, Any]:
        """Return it as `--json` prints it."""
        return {
            "since": self.start.at,
            "since_is": self.start.why,
            "interval_seconds": self.promise.interval_seconds,
            "schedule": self.promise.schedule,
            "time_zone": self.promise.time_zone,
            "grace_seconds": self.promise.grace_seconds,
            "missed_limit": self.missed_limit,
            "slots": list(self.slots),
            "unmoved_at": self.base_at,
            "outages": self._moves_json("outage"),
            "maintenance": self._moves_json("maintenance"),
            "other_seconds": self.other_seconds,
            "late_at": self.late_at,
            "deadline_at": self.deadline_at,
            "text": self.lines(),
        }

    def _moves_json(self, why: str) -> list[dict[str, Any]]:
        return [
            {"started_at": move.started_at, "ended_at": move.ended_at, "moved_seconds": round(move.seconds, 3)}
            for move in self.moves
            if move.why == why
        ]


def work_out(
    start: Start,
    promise: Promise,
    missed_limit: int,
    unwatched: Unwatched,
    stored_at: datetime | None = None,
) -> Arithmetic:
    """Return how the deadline of a session that is silent since a moment comes about.

    `stored_at`: the deadline that SQL has, which decides, unless it was moved by maintenance, or by a gap in which
    nobody could be heard: a sweep writes that down only when it finds the deadline passed.
    """
    rule = DeadlineRule(promise, missed_limit, unwatched)
    since = to_milliseconds(start.at)
    started, _ = rule.clock(since)
    if started != since:
        since, start = started, Start(from_milliseconds(started), "end of maintenance")
        stored_at = None
    base = due = rule.base(since)
    moves: list[Move] = []
    spans = [(*outage, "outage") for outage in unwatched.outages]
    if start.why == "end of maintenance":
        spans += [(*window, "maintenance") for window in subtract(unwatched.windows, unwatched.outages)]
    for began, ended, why in sorted(spans):
        moved = extend_over_outages(due, since, [(began, ended)])
        if moved > due:
            moves.append(Move(why, from_milliseconds(began), from_milliseconds(ended), (moved - due) / 1000))
            due = moved
    if moves and stored_at is not None and stored_at < from_milliseconds(due):
        stored_at = None
    other = 0.0 if stored_at is None else (stored_at - from_milliseconds(due)).total_seconds()
    deadline_at = stored_at or from_milliseconds(due)
    slots = _slots(promise, start.at, missed_limit)
    if promise.interval_seconds is not None:
        late_at = deadline_at - timedelta(seconds=promise.interval_seconds * (missed_limit - 1))
    else:
        late_at = slots[0] + timedelta(seconds=promise.grace_seconds) + (deadline_at - from_milliseconds(base))
    return Arithmetic(
        start, promise, missed_limit, slots, from_milliseconds(base), tuple(moves), other, deadline_at, late_at
    )


def _slots(promise: Promise, since: datetime, missed_limit: int) -> tuple[datetime, ...]:
    if promise.schedule is None:
        return ()
    after = since + timedelta(seconds=promise.grace_seconds)
    return tuple(islice(slots_after(promise.schedule, promise.time_zone or "UTC", after), missed_limit))
