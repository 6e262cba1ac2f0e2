"""The time rules: when an agent is late, degraded, or fine.

Pure functions: they look at no clock and at no database. All datetimes are aware and in UTC.

The words: an agent *promises* a heartbeat each interval, or at each slot of a cron schedule. An interval that passed
without one is *missed*. An agent that missed as many as its limit is *degraded*: the promise's own `missed_limit`, or
else the fleet's, which is the argument of that name (two, unless set otherwise).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from itertools import islice, takewhile
from typing import Protocol, TypeVar

from fleetbeat_shared.schedules import slots_after

Moment = TypeVar("Moment", datetime, int)
"""A moment, or its milliseconds since 1970 where many pass by."""

MISSED_COUNTED = 100
"""Where the counting of what was missed stops: a schedule of every minute, forgotten for a year, has half a million
slots, and finding each takes time."""

SCHEDULE_GRACE_SECONDS = 60.0
"""How late a heartbeat on a cron schedule may be unless the agent says otherwise: cron itself starts each minute."""

UNJUDGEABLE = (ValueError, LookupError, ArithmeticError, TypeError)
"""What the rules raise for a promise that can't be worked out: its time zone is gone from the machine's data, say. The
one who judges many agents sets that one aside."""


class State(StrEnum):
    """What is known of an agent."""

    PENDING = "pending"
    """Registered, never seen."""
    OK = "ok"
    """Its heartbeats come as promised."""
    LATE = "late"
    """One interval missed. Derived when read, never stored."""
    DEGRADED = "degraded"
    """As many intervals missed as the limit allows."""
    PAUSED = "paused"
    """Silenced on purpose: it is not judged until it is resumed."""
    ENDED = "ended"
    """It said goodbye, or another session took its name."""


@dataclass(frozen=True, slots=True)
class Promise:
    """How often an agent promised to beat: `interval_seconds`, or a cron `schedule` in a `time_zone`."""

    interval_seconds: float | None
    schedule: str | None
    time_zone: str | None
    grace_seconds: float
    missed_limit: int | None = None
    """How many it may miss before it is degraded; None: as many as the fleet's agents may."""

    def limit(self, of_the_fleet: int) -> int:
        """Return how many intervals it may miss: its own number before the fleet's."""
        return self.missed_limit or of_the_fleet


class PromiseRow(Protocol):
    """A row with the columns of `liveness` that hold what its agent promised."""

    interval_seconds: float | None
    schedule: str | None
    time_zone: str | None
    grace_seconds: float
    missed_limit: int | None


PROMISE_COLUMNS = tuple(field.name for field in fields(Promise))
"""The columns of `liveness` that hold a promise, in the order of `Promise`'s fields."""

cached_promise = lru_cache(maxsize=1024)(Promise)
"""`Promise`, one object for equal promises: most agents of a fleet promise the same."""


def promise_of(row: PromiseRow) -> Promise:
    """Read the promise of a row of `liveness`."""
    return cached_promise(row.interval_seconds, row.schedule, row.time_zone, row.grace_seconds, row.missed_limit)


def silent_since(registered_at: Moment, last_seen_at: Moment | None, resumed_at: Moment | None) -> Moment:
    """Return from when on an agent's silence counts: the newest of its registration, last sign, and end of a pause."""
    since = registered_at
    if last_seen_at is not None and last_seen_at > since:
        since = last_seen_at
    if resumed_at is not None and resumed_at > since:
        since = resumed_at
    return since


def default_grace_seconds(interval_seconds: float | None) -> float:
    """Return how much later than promised a heartbeat may come.

    5% of the interval, at least 1 s and at most 60 s; 60 s for a cron schedule (no interval).
    """
    if interval_seconds is None:
        return SCHEDULE_GRACE_SECONDS
    return min(max(interval_seconds * 0.05, 1.0), 60.0)


def allowed_silence_seconds(promise: Promise, missed_limit: int) -> float | None:
    """Return how long after a heartbeat an agent becomes degraded: limit x interval + grace; None with a schedule."""
    if promise.interval_seconds is None:
        return None
    return promise.interval_seconds * promise.limit(missed_limit) + promise.grace_seconds


def deadline(promise: Promise, since: datetime, missed_limit: int) -> datetime:
    """Return the moment at which an agent last seen at `since` becomes degraded, if it stays silent.

    Interval: `since` + limit x interval + grace. Schedule: the limit-th slot after `since`, plus grace, where a
    heartbeat within grace before a slot counts for that slot.
    """
    allowed = allowed_silence_seconds(promise, missed_limit)
    if allowed is not None:
        return since + timedelta(seconds=allowed)
    grace = timedelta(seconds=promise.grace_seconds)
    slots = slots_after(promise.schedule or "", promise.time_zone or "UTC", since + grace)
    return next(islice(slots, promise.limit(missed_limit) - 1, None)) + grace


def extend_over_outages(deadline_at: Moment, since: Moment, outages: Iterable[tuple[Moment, Moment]]) -> Moment:
    """Return the deadline moved by the time after `since` in which nobody watched.

    `outages` are starts and ends, in their order. An outage that began after the deadline had passed moves nothing: the
    agent was silent for its whole time while it was watched.
    """
    for started_at, ended_at in outages:
        if started_at >= deadline_at:
            break
        if ended_at > since:
            deadline_at += ended_at - max(started_at, since)
    return deadline_at


def missed_intervals(  # noqa: PLR0913 - all that the count depends on
    promise: Promise,
    since: datetime,
    deadline_at: datetime,
    as_of: datetime,
    missed_limit: int,
    *,
    count_to: int = MISSED_COUNTED,
) -> int:
    """Return how many intervals (or slots) an agent last seen at `since` has missed by `as_of`, `count_to` at most.

    Counted back from the deadline, at which exactly the limit is missed, so that what moved the deadline (an
    outage) moves the count too.
    """
    if promise.interval_seconds is not None:
        past_deadline = (as_of - deadline_at).total_seconds()
        return min(count_to, max(0, promise.limit(missed_limit) + math.floor(past_deadline / promise.interval_seconds)))
    grace = timedelta(seconds=promise.grace_seconds)
    moved = deadline_at - deadline(promise, since, missed_limit)
    slots = islice(slots_after(promise.schedule or "", promise.time_zone or "UTC", since + grace), count_to)
    return sum(1 for _ in takewhile(lambda slot: slot + grace + moved <= as_of, slots))


def shown_state(stored: State, missed: int) -> State:
    """Return the state to show for a stored one: an agent that is `ok` but missed an interval is late."""
    return State.LATE if stored is State.OK and missed > 0 else stored


WATCHED = (State.PENDING.value, State.OK.value)
"""The states whose deadline counts."""
