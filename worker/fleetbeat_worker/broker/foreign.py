"""What others wrote to our keys in Redis: it is removed, as whoever reads it would fail of it again and again.

Agents can't do that, but whoever looks after Redis can mistype a key. What is no stream in the inbox's place goes, too:
the stream that was there is gone, which is told as any loss of it, and agents can send nothing until there is another.
"""

from __future__ import annotations

from typing import Any

from redis import Redis

from fleetbeat_shared.redis_keys import (
    ACCOUNT,
    DISPATCHER_LOCK,
    INBOX,
    NOTICES_DUE,
    POOLS,
    PULSE,
    PULSE_GAPS,
    STORED,
    WANTED,
)
from fleetbeat_worker.telemetry.log import logger

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
