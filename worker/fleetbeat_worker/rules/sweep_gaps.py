"""When somebody last looked at the fleet: sweeps overtake each other, and a clock may be turned back.

Pure.
"""

from __future__ import annotations

from datetime import datetime, timedelta

OUTAGE_SECONDS = 30.0
OUTAGE_SWEEPS = 3
"""A gap between two sweeps is an outage when it is longer than both: 30 s, and three times the sweep's interval."""

OVERTAKEN_SECONDS = 600.0
"""A sweep that looked at Redis before another one and decides after it has overslept by less than this."""


def last_look(before: datetime | None, now: datetime) -> datetime:
    """Return when somebody last looked: by a sweep of `now`, or by an earlier one that overtook it, of `before`.

    An earlier look that lies further in the future than a sweep can take was made before the clock was turned back.
    """
    return before if before is not None and before > now and not is_turned_back(before, now) else now


def longest_gap_seconds(sweep_seconds: float) -> float:
    """Return how long may lie between two looks before it is an outage."""
    return max(OUTAGE_SECONDS, OUTAGE_SWEEPS * sweep_seconds)


def is_turned_back(before: datetime | None, now: datetime) -> bool:
    """Return whether the clock was turned back since somebody looked: no sweep can take so long."""
    return before is not None and before - now >= timedelta(seconds=OVERTAKEN_SECONDS)


def outage_between(last_sweep_at: datetime | None, now: datetime, sweep_seconds: float) -> timedelta | None:
    """Return the time between two sweeps if it is long enough to be an outage."""
    if last_sweep_at is None:
        return None
    gap = now - last_sweep_at
    return gap if gap.total_seconds() > longest_gap_seconds(sweep_seconds) else None
