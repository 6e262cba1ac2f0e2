"""When an agent changes its state so often that telling of each change would only be noise.

Pure functions, as in `liveness`. A change is one from silent to heard or back: degraded, or recovered.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from itertools import islice

from fleetbeat_shared.schedules import slots_after
from fleetbeat_worker.rules.liveness import Promise

WINDOW_INTERVALS = 20
"""How many of an agent's own intervals are looked back upon: an agent that beats each second flaps within seconds, one
that beats each hour within hours."""


def window_start(promise: Promise, now: datetime) -> datetime:
    """Return from when on an agent's changes count: its last twenty intervals.

    For a schedule it is the time that its next twenty slots take, looked back upon: found without going through the
    past, and the same for all schedules that come evenly.

    Raises ValueError or the like (`UNJUDGEABLE`) for a schedule that can't be worked out.
    """
    if promise.interval_seconds is not None:
        return now - timedelta(seconds=promise.interval_seconds * WINDOW_INTERVALS)
    slots = slots_after(promise.schedule or "", promise.time_zone or "UTC", now)
    first, *_, last = islice(slots, WINDOW_INTERVALS + 1)
    return now - (last - first)


def is_flapping(changes: Iterable[datetime], promise: Promise, now: datetime, limit: int) -> bool:
    """Return whether more than `limit` of some changes lie in an agent's last twenty intervals."""
    start = window_start(promise, now)
    return sum(1 for change in changes if change > start) > limit
