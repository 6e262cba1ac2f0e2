"""When an agent is alive and stuck: it beats, but says the same again and again.

An agent that loops sends perfect heartbeats; only what it says gives it away. It is stuck when it has said nothing new
for its limit x interval + grace, moved by all that moves the deadline of a silence, as what it said then may come late.
That counts from no earlier than its return from a silence: how long it was away says nothing of a loop. Schedules have
no interval, and are left out: an agent that cron starts anew each time can't loop from one time to the next.
"""

from __future__ import annotations


def stuck_limit(own: int | None, fleet: int | None) -> int | None:
    """Return after how many intervals an agent is stuck: its own number before the fleet's; 0 and None mean never."""
    return (fleet if own is None else own) or None
