"""The account of the inbox: whether anything left it that no worker took out.

An agent may add to the inbox and do no more to it, but Redis lets it trim the stream with the same command. Redis
counts what was ever added to a stream, and the workers count what they take out, in the step in which they take it:

    lost = added - still in the stream - taken out - trimmed while in a worker's hands

The last are no loss yet: their worker stores them all the same, and takes them out, or it dies, and then they are lost.
Whatever dies at whatever time, the sum is zero as long as nobody trims. It is exact when somebody does, but for one
thing: what was trimmed, stored, and left unacknowledged by a worker that died then counts as lost.

The count is kept in Redis beside the stream, so that it needs no more memory, is written in the same step, and shares
the stream's fate. An account has a name of its own, its *life*: where another life is found, Redis lost its data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from redis import Redis

from fleetbeat_shared.identifiers import new_message_id
from fleetbeat_shared.redis_keys import ACCOUNT, GROUP, INBOX, STORED
from fleetbeat_worker.rules.spans import from_milliseconds

_STREAM = """
local function stream(key)
  local found = {}
  local info = redis.pcall('XINFO', 'STREAM', key)
  for place = 1, #info, 2 do found[info[place]] = info[place + 1] end
  return found['entries-added'] or 0, found['length'] or 0, found['last-generated-id'] or '0-0'
end
"""

# A full Redis refuses HINCRBY on its own, but not in a script that has begun to write. Of entries whose group was made
# anew only XDEL knows, of those that were trimmed meanwhile only XACK: the greater is what left. In steps, as Lua takes
# some thousand arguments at most.
_TAKE_OUT = """
for first = 3, #ARGV, 1000 do
  local last = math.min(first + 999, #ARGV)
  local acknowledged = redis.call('XACK', KEYS[1], ARGV[1], unpack(ARGV, first, last))
  local deleted = redis.call('XDEL', KEYS[1], unpack(ARGV, first, last))
  redis.call('HINCRBY', KEYS[2], 'taken', math.max(acknowledged, deleted))
  redis.call('HINCRBY', KEYS[3], ARGV[2], math.max(acknowledged, deleted))
end
"""

# An account that begins beside an older stream begins as if all was in order.
_OPEN = (
    _STREAM
    + """
local made = redis.pcall('XGROUP', 'CREATE', KEYS[1], ARGV[1], '0', 'MKSTREAM')
if type(made) == 'table' and made.err and not string.find(tostring(made.err), 'BUSYGROUP') then return made end
if redis.call('HSETNX', KEYS[2], 'life', ARGV[2]) == 1 then
  local added, length = stream(KEYS[1])
  redis.call('HSET', KEYS[2], 'taken', added - length)
end
"""
)

# Ids that lie in the future stay there: each is larger than the one before. With the stream made anew they begin at the
# present. Only while it is empty, so that nothing is lost, which only a script can see and do in one step.
_REBUILD = (
    _STREAM
    + """
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
local added, length, last = stream(KEYS[1])
local milliseconds = tonumber(string.match(last, '^%d+'))
local latest = tonumber(redis.call('TIME')[1]) * 1000 + tonumber(ARGV[2])
if length > 0 or milliseconds <= latest then return 0 end
redis.call('DEL', KEYS[1])
redis.call('XGROUP', 'CREATE', KEYS[1], ARGV[1], '0', 'MKSTREAM')
redis.call('HINCRBY', KEYS[2], 'taken', -added)
return 1
"""
)

# Trimming takes the oldest: what is pending and older than all that is left was trimmed in a worker's hands.
_READ = (
    _STREAM
    + """
local now = redis.call('TIME')
local added, length = stream(KEYS[1])
local oldest = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
local before = oldest and '(' .. oldest[1] or '+'
local held, after = 0, '-'
while true do
  local page = redis.pcall('XPENDING', KEYS[1], ARGV[1], after, before, 1000)
  held = held + #page
  if #page < 1000 then break end
  after = '(' .. page[#page][1]
end
local life, taken = unpack(redis.call('HMGET', KEYS[2], 'life', 'taken'))
return {now[1], now[2], life, added - length - tonumber(taken or 0) - held}
"""
)


@dataclass(frozen=True, slots=True)
class Account:
    """What became of the inbox's entries, at one moment."""

    read_at: datetime
    """Redis's time."""
    life: str | None
    """Another one than before: Redis lost its data. None before any worker was here."""
    lost: int
    """Entries that somebody else than the workers removed before they were in SQL, in this life."""


def read_account(client: Redis) -> Account:
    """Return the account. Raises redis-py's errors."""
    redis: Any = client  # redis-py's hints can't tell its sync answers from its async ones
    seconds, microseconds, life, lost = redis.eval(_READ, 2, INBOX, ACCOUNT, GROUP)
    read_at = from_milliseconds(int(seconds) * 1000 + int(microseconds) // 1000)
    if life is None:
        return Account(read_at, None, 0)
    return Account(read_at, life.decode() if isinstance(life, bytes) else life, lost)


def open_account(client: Redis) -> None:
    """Make the stream, its group and its account, unless they are there. Raises redis-py's errors."""
    client.eval(_OPEN, 2, INBOX, ACCOUNT, GROUP, str(new_message_id()))


def take_out(client: Redis, ids: Sequence[str], consumer: str) -> None:
    """Acknowledge, delete and count entries that a consumer stored, all of it or nothing. Raises redis-py's errors."""
    redis: Any = client  # as above
    redis.execute_command(*take_out_command(ids, consumer))


def take_out_command(ids: Sequence[str], consumer: str) -> tuple[str | int, ...]:
    """Return the command that takes entries out."""
    return ("EVAL", _TAKE_OUT, 3, INBOX, ACCOUNT, STORED, GROUP, consumer, *ids)


def rebuild_if_in_future(client: Redis, step_milliseconds: int) -> bool:
    """Make the empty stream anew if its ids lie in the future; return whether that was done.

    `step_milliseconds` is how far they may. Raises redis-py's errors.
    """
    redis: Any = client  # as above
    return bool(redis.eval(_REBUILD, 2, INBOX, ACCOUNT, GROUP, step_milliseconds))
