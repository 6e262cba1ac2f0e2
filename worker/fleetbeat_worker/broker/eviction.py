"""Whether Redis may throw queued messages away when its memory is full, which nobody would notice in time.

Fleetbeat can't prevent it: the server's settings are its owner's. It can say so.
"""

from __future__ import annotations

from redis import Redis
from redis.exceptions import ResponseError

from fleetbeat_shared.sanitize import clean

_SAFE = "noeviction"


def eviction_warning(client: Redis) -> str | None:
    """Return what is wrong with Redis's `maxmemory-policy` and what to do, or None if nothing can be evicted.

    Raises redis-py's errors.
    """
    try:
        memory = client.info("memory")  # not CONFIG GET, which a worker's user may not call
    except ResponseError:
        return None  # a server, or a user's rights, that tell nothing of it
    policy = clean(str(memory.get("maxmemory_policy", _SAFE)))
    if policy == _SAFE or not memory.get("maxmemory"):
        return None
    return (
        f"Redis may throw queued messages away when its memory is full: its maxmemory-policy is {policy}. "
        f"Set it to {_SAFE}."
    )
