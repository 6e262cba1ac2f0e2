"""Redis server: connections, its clock, whether it accepts writes, its eviction policy, and the types of our keys."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from redis import Redis
from redis.exceptions import OutOfMemoryError, ReadOnlyError, ResponseError

from fleetbeat_shared.connection import connect
from fleetbeat_shared.redis_keys import (
    ACCOUNT,
    DISPATCHER_LOCK,
    INBOX,
    NOTICES_DUE,
    POOLS,
    PROBE,
    PULSE,
    PULSE_GAPS,
    SESSIONS,
    SESSIONS_IN_HAND,
    STORED,
    WANTED,
)
from fleetbeat_shared.sanitize import clean
from fleetbeat_shared.settings import Settings
from fleetbeat_worker.rules.spans import from_milliseconds
from fleetbeat_worker.telemetry.log import logger

TIMEOUT_SECONDS = 5.0
"""How long a worker's command waits for Redis."""

_SAFE_POLICY = "noeviction"

_PROBE = "redis.call('SET', KEYS[1], 1) redis.call('DEL', KEYS[1])"

_TYPES = {
    DISPATCHER_LOCK: "string",
    PULSE_GAPS: "list",
    INBOX: "stream",
    SESSIONS: "stream",
    SESSIONS_IN_HAND: "hash",
    PULSE: "string",
    ACCOUNT: "hash",
    STORED: "hash",
    NOTICES_DUE: "string",
    POOLS: "hash",
    WANTED: "hash",
}

# One script, so that no key is removed that another process has just repaired. A lock without a time to live is no
# dispatcher's, and would keep all of them from being elected. While a stream had another type Redis accepted no
# message, and without the list of gaps earlier ones are lost: both become a gap of unknown start (0).
_REPAIR = """
local lock, gaps, inbox, lane = unpack(KEYS)
local removed, has_gap = {}, false
for place, key in ipairs(KEYS) do
  local kind = redis.call('TYPE', key)['ok']
  if kind ~= 'none' and (kind ~= ARGV[place] or key == lock and redis.call('PTTL', key) == -1) then
    redis.call('DEL', key)
    table.insert(removed, key)
    has_gap = has_gap or key == gaps or key == inbox or key == lane
  end
end
if has_gap then
  local time = redis.call('TIME')
  redis.call('RPUSH', gaps, string.format('0:%d', time[1] * 1000 + math.floor(time[2] / 1000)))
end
return removed
"""


def connect_worker(settings: Settings, name: str | None = None) -> Redis:
    """Make a client for a worker process; `name` is its name in CLIENT LIST. Raises SettingsError."""
    return connect(settings.redis_url, timeout_seconds=TIMEOUT_SECONDS, name=name)


def redis_now(client: Redis) -> datetime:
    """Read Redis's time. Raises redis-py's errors."""
    return from_milliseconds(milliseconds_of(client.time()))


def milliseconds_of(time: Any) -> int:  # noqa: ANN401 - redis-py's hints can't tell its sync answers from its async ones
    """Convert what TIME answers into milliseconds since 1970."""
    seconds, microseconds = time
    return int(seconds) * 1000 + int(microseconds) // 1000


def as_text(value: bytes | str) -> str:
    """Decode what Redis answers, bytes that are no UTF-8 as backslash escapes."""
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else value


def probe_write(client: Redis) -> None:
    """Write a key and delete it. Raises redis-py's errors, also when Redis refuses writes."""
    client.eval(_PROBE, 1, PROBE)


def read_write_refusal(client: Redis) -> str | None:
    """Read why Redis refuses messages although it answers, or None if it accepts them.

    Raises redis-py's other errors.
    """
    try:
        probe_write(client)
    except (OutOfMemoryError, ReadOnlyError) as error:
        return str(error)
    except ResponseError as error:
        if str(error).startswith(("MISCONF", "NOREPLICAS")):
            return str(error)
        raise
    return None


def read_eviction_warning(client: Redis) -> str | None:
    """Read what is wrong with Redis's `maxmemory-policy` and what to do, or None if no message can be evicted.

    Raises redis-py's errors.
    """
    try:
        memory = client.info("memory")  # not CONFIG GET, which a worker's user may not call
    except ResponseError:
        return None  # this server, or this user's rights, don't show it
    policy = clean(str(memory.get("maxmemory_policy", _SAFE_POLICY)))
    if policy == _SAFE_POLICY or not memory.get("maxmemory"):
        return None
    return (
        f"Redis may evict queued messages when its memory is full: its maxmemory-policy is {policy}. "
        f"Set it to {_SAFE_POLICY}."
    )


def repair_keys(client: Redis) -> None:
    """Remove our keys that have a wrong type, and a dispatcher's lock that never expires; log a warning.

    Raises redis-py's errors.
    """
    redis: Any = client  # redis-py's hints can't tell its sync answers from its async ones
    removed = redis.eval(_REPAIR, len(_TYPES), *_TYPES, *_TYPES.values())
    if removed:
        logger.warning(
            "Keys of Fleetbeat in Redis had a wrong type or no time to live, and were removed; "
            "another program must have written to them",
            extra={"keys": [as_text(key) for key in removed]},
        )
