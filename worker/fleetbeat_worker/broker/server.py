"""Redis server: its clock, whether it takes writes, its eviction policy, and the types of our keys."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from redis import Redis
from redis.exceptions import OutOfMemoryError, ReadOnlyError, ResponseError

from fleetbeat_shared.redis_keys import (
    ACCOUNT,
    DISPATCHER_LOCK,
    INBOX,
    NOTICES_DUE,
    POOLS,
    PROBE,
    PULSE,
    PULSE_GAPS,
    STORED,
    WANTED,
)
from fleetbeat_shared.sanitize import clean
from fleetbeat_worker.rules.spans import from_milliseconds
from fleetbeat_worker.telemetry.log import logger

_PROBE = "redis.call('SET', KEYS[1], 1) redis.call('DEL', KEYS[1])"


def probe(client: Redis) -> None:
    """Write something, and take it away again. Raises redis-py's errors, also when Redis refuses what is written."""
    client.eval(_PROBE, 1, PROBE)


def refusal(client: Redis) -> str | None:
    """Return why Redis refuses what agents send, though it answers; None if it takes it.

    Raises redis-py's other errors.
    """
    try:
        probe(client)
    except (OutOfMemoryError, ReadOnlyError) as error:
        return str(error)
    except ResponseError as error:
        if str(error).startswith(("MISCONF", "NOREPLICAS")):
            return str(error)
        raise
    return None


def redis_now(client: Redis) -> datetime:
    """Return Redis's time. Raises redis-py's errors."""
    seconds, microseconds = client.time()
    return from_milliseconds(int(seconds) * 1000 + int(microseconds) // 1000)


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


_TYPES = {
    PULSE: "string",
    PULSE_GAPS: "list",
    ACCOUNT: "hash",
    STORED: "hash",
    DISPATCHER_LOCK: "string",
    NOTICES_DUE: "string",
    POOLS: "hash",
    WANTED: "hash",
    INBOX: "stream",
}


# All in one step, so that nothing is removed that somebody puts right meanwhile. In place of gaps that were overwritten
# comes one that began nobody knows when, and so does one for the time in which there was no inbox. A lock that doesn't
# run out is no dispatcher's, and would keep all of them from being elected. Moments have 13 digits until 2286.
_REMOVE = """
local pulse, gaps, account, stored, lock = unpack(KEYS)
local inbox = KEYS[#KEYS]
local found, unheard = {}, false
local function remove(key)
  redis.call('DEL', key)
  table.insert(found, key)
end
local function is_moment(text) return #text <= 14 and string.find(text, '^%d+$') end
local function is_count(text) return #text <= 15 and string.find(text, '^%-?%d+$') end

for place, key in ipairs(KEYS) do
  local kind = redis.call('TYPE', key)['ok']
  if kind ~= 'none' and kind ~= ARGV[place] then
    remove(key)
    unheard = unheard or key == gaps or key == inbox
  end
end
if unheard then
  local time = redis.call('TIME')
  redis.call('RPUSH', gaps, string.format('0:%d', time[1] * 1000 + math.floor(time[2] / 1000)))
end
local at = redis.call('GET', pulse)
if at and not is_moment(at) then remove(pulse) end
for _, gap in ipairs(redis.call('LRANGE', gaps, 0, -1)) do
  local from, to = string.match(gap, '^(%d+):(%d+)$')
  if not from or not is_moment(from) or not is_moment(to) then
    redis.call('LREM', gaps, 0, gap)
    table.insert(found, gaps)
  end
end
local life, taken = unpack(redis.call('HMGET', account, 'life', 'taken'))
if (life and not string.find(life, '^[%x-]+$')) or (taken and not is_count(taken)) then remove(account) end
for _, count in ipairs(redis.call('HVALS', stored)) do
  if not is_count(count) then
    remove(stored)
    break
  end
end
if redis.call('PTTL', lock) == -1 then remove(lock) end
return found
"""


def remove_foreign(client: Redis) -> None:
    """Remove from our keys what no Fleetbeat wrote there, and say so. Raises redis-py's errors."""
    redis: Any = client  # redis-py's hints can't tell its sync answers from its async ones
    found = redis.eval(_REMOVE, len(_TYPES), *_TYPES, *_TYPES.values())
    if found:
        keys = [key.decode() if isinstance(key, bytes) else key for key in dict.fromkeys(found)]
        logger.warning(
            "Somebody else than Fleetbeat wrote to its keys in Redis; what can't be read was removed",
            extra={"keys": keys},
        )
