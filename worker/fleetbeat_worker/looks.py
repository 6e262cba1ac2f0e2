"""When somebody last looked at the fleet: sweeps overtake each other, and a clock may be turned back.

Pure.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime

OVERTAKEN_SECONDS = 600.0
"""A sweep that looked at Redis before another one and decides after it has overslept by less than this."""


def last_look(before: datetime | None, now: datetime) -> datetime:
    """Return when somebody last looked: by a sweep of `now`, or by an earlier one that overtook it, of `before`.

    An earlier look that lies further in the future than a sweep can take was made before the clock was turned back.
    """
    return before if before is not None and before > now and not is_turned_back(before, now) else now


def is_turned_back(before: datetime | None, now: datetime) -> bool:
    """Return whether the clock was turned back since somebody looked: no sweep can take so long."""
    return before is not None and before - now >= timedelta(seconds=OVERTAKEN_SECONDS)
