"""When an agent is alive and stuck: it beats, but says the same again and again.

Pure functions, as in `liveness`. An agent that loops sends perfect heartbeats; only what it says gives it away.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from fleetbeat_shared.liveness import extend_over_outages

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from fleetbeat_shared.liveness import Promise


def stuck_limit(own: int | None, fleet: int | None) -> int | None:
    """Return after how many intervals an agent is stuck: its own number before the fleet's; 0 and None mean never."""
    return (fleet if own is None else own) or None


def stuck_deadline(
    promise: Promise, since: datetime, limit: int, outages: Iterable[tuple[datetime, datetime]] = ()
) -> datetime | None:
    """Return when an agent that did something else at `since` is stuck, if it says nothing new; None: never.

    `since` + limit x interval + grace, moved by the time in which nobody watched, as what it said then may come late.
    `since` is no earlier than its return from a silence: how long it was away says nothing of a loop. Schedules have no
    interval, and are left out: an agent that cron starts anew each time can't loop from one time to the next.
    """
    if promise.interval_seconds is None:
        return None
    allowed = timedelta(seconds=promise.interval_seconds * limit + promise.grace_seconds)
    return extend_over_outages(since + allowed, since, outages)
