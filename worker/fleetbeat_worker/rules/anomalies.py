"""When an agent changes its state so often that telling of each change would only be noise.

Pure functions, as in `liveness`. A change is one from silent to heard or back: degraded, or recovered.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import islice

from fleetbeat_shared.schedules import slots_after
from fleetbeat_worker.rules.deadlines import DeadlineRule, Unwatched
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


DOING = ("progress", "work_item_id", "status")
"""An agent for which none of these changes, while it beats, is stuck. Not the summary or the counts of tasks: they may
count on while it goes in circles."""


def stuck_limit(own: int | None, fleet: int | None) -> int | None:
    """Return after how many intervals an agent is stuck: its own number before the fleet's; 0 and None mean never."""
    return (fleet if own is None else own) or None


def is_stuck(  # noqa: PLR0913, PLR0917 - all that it depends on
    promise: Promise, unchanged_since: int, silent_since: int, watermark: int, limit: int, unwatched: Unwatched
) -> bool:
    """Whether an agent that is ok has reported no change for longer than `limit` intervals and the grace.

    An agent that is late isn't stuck: it may become degraded. All times are in milliseconds since 1970.
    """

    def has_passed(since: int, intervals: int) -> bool:
        return DeadlineRule(replace(promise, missed_limit=intervals), intervals, unwatched)(since) < watermark

    return has_passed(unchanged_since, limit) and not has_passed(silent_since, 1)


INCIDENT_AGENTS = 5
"""With fewer agents each is told of by itself: that is no storm."""


JOINING = timedelta(minutes=2)
"""For how long silences count as the same incident, those before it was one and those after: what stops a fleet at one
moment is found as each agent's deadline comes, sweep after sweep, those with long intervals last."""


GIVEN_UP = timedelta(days=1)
"""After this time nobody is waited for any more: a notification isn't tried for longer, either."""


def is_incident(silent: int, live: int) -> bool:
    """Return whether agents flagged within `JOINING` are one incident: more than half of the live ones, at least five.

    `live` are those that were neither ended nor paused before, whether they were degraded already or not.
    """
    return silent >= INCIDENT_AGENTS and 2 * silent > live


def joins(silent: int, live: int, started_at: datetime, now: datetime) -> bool:
    """Return whether agents that went silent belong to an incident that is open.

    They do as long as it is young, and at any time if they would be one by themselves: two that are open at once would
    tell nobody more, and which of them an agent came back from couldn't be said.
    """
    return now - started_at < JOINING or is_incident(silent, live)


def is_over(members: int, silent: int, last_flagged_at: datetime | None, now: datetime) -> bool:
    """Return whether an incident is over: at least half of its agents are back, ended or paused.

    Or none of those that are silent still was flagged (the last at `last_flagged_at`) in the last day: whoever comes
    back so much later, after a fleet was taken down for good, say, is told of by itself.
    """
    return 2 * silent <= members or (last_flagged_at is not None and now - last_flagged_at >= GIVEN_UP)
