"""When many silences are one incident: a switch that failed, a proxy, a bad release.

Pure functions, as in `liveness`.
"""

from __future__ import annotations

from datetime import datetime, timedelta

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
