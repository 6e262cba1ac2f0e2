"""Accounting: what is added to the inbox and the lane, what the workers take out, and what left them otherwise.

An agent may add to the two streams and do no more to them, but Redis lets it trim a stream with the same command.
Redis counts what was ever added to a stream, and the workers count what they take out, in the step in which they take
it. Over both streams,

    lost = added - still in the streams - taken out - trimmed while in a worker's hands

The last are no loss yet: their worker stores them all the same, and takes them out, or it dies, and then they are lost.
Whatever dies at whatever time, the sum is zero as long as nothing is trimmed. It is exact when something is, but for
two things: what was trimmed, stored, and left unacknowledged by a worker that died then counts as lost, and so does
what was trimmed from the lane in the moment in which it was applied.

The count is kept in Redis beside the streams, so that it needs no more memory, is written in the same step, and shares
their fate. An account has a name of its own, its *life*: where another life is found, Redis lost its data.

The same counters tell the flow: messages a second, as the difference of two samples. A sample costs Redis as much as
any small command, so that nothing is counted twice for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from redis import Redis
from redis.exceptions import ResponseError

from fleetbeat_shared.identifiers import new_message_id
from fleetbeat_shared.redis_keys import ACCOUNT, GROUP, INBOX, SESSIONS, STORED
from fleetbeat_worker.broker.server import as_text, milliseconds_of
from fleetbeat_worker.rules.spans import from_milliseconds

SHORTEST_SECONDS = 0.5
"""Samples that are closer together give no rate."""

_STREAM = """
local function stream(key)
  local found = {}
  local info = redis.pcall('XINFO', 'STREAM', key)
  for place = 1, #info, 2 do found[info[place]] = info[place + 1] end
  return found['entries-added'] or 0, found['length'] or 0, found['last-generated-id'] or '0-0'
end
local function gone(inbox, lane)
  local added, length = stream(inbox)
  local added_too, length_too = stream(lane)
  return added + added_too - length - length_too
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

# An account that begins beside older streams begins as if all was in order.
_OPEN = (
    _STREAM
    + """
local made = redis.pcall('XGROUP', 'CREATE', KEYS[1], ARGV[1], '0', 'MKSTREAM')
if type(made) == 'table' and made.err and not string.find(tostring(made.err), 'BUSYGROUP') then return made end
if redis.call('HSETNX', KEYS[3], 'life', ARGV[2]) == 1 then
  redis.call('HSET', KEYS[3], 'taken', gone(KEYS[1], KEYS[2]))
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
local latest = tonumber(redis.call('TIME')[1]) * 1000 + tonumber(ARGV[1])
if length > 0 or milliseconds <= latest then return 0 end
redis.call('DEL', KEYS[1])
if ARGV[2] then redis.call('XGROUP', 'CREATE', KEYS[1], ARGV[2], '0', 'MKSTREAM') end
redis.call('HINCRBY', KEYS[2], 'taken', -added)
return 1
"""
)

# Trimming takes the oldest: what is pending and older than all that is left was trimmed in a worker's hands.
_READ = (
    _STREAM
    + """
local now = redis.call('TIME')
local oldest = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
local before = oldest and '(' .. oldest[1] or '+'
local held, after = 0, '-'
while true do
  local page = redis.pcall('XPENDING', KEYS[1], ARGV[1], after, before, 1000)
  held = held + #page
  if #page < 1000 then break end
  after = '(' .. page[#page][1]
end
local life, taken = unpack(redis.call('HMGET', KEYS[3], 'life', 'taken'))
return {now, life, gone(KEYS[1], KEYS[2]) - tonumber(taken or 0) - held}
"""
)


@dataclass(frozen=True, slots=True)
class Account:
    """What became of the entries of inbox and lane, at one moment."""

    read_at: datetime
    """Redis's time."""
    life: str | None
    """Another one than before: Redis lost its data. None before any worker was here."""
    lost: int
    """Entries that somebody else than the workers removed before they were in SQL, in this life."""


def read_account(client: Redis) -> Account:
    """Read the account. Raises redis-py's errors."""
    redis: Any = client  # redis-py's hints can't tell its sync answers from its async ones
    time, life, lost = redis.eval(_READ, 3, INBOX, SESSIONS, ACCOUNT, GROUP)
    read_at = from_milliseconds(milliseconds_of(time))
    return Account(read_at, None, 0) if life is None else Account(read_at, as_text(life), lost)


def open_account(client: Redis) -> None:
    """Make the inbox, its group and the account, unless they are there. Raises redis-py's errors."""
    client.eval(_OPEN, 3, INBOX, SESSIONS, ACCOUNT, GROUP, str(new_message_id()))


def take_out_command(stream: str, ids: Sequence[str], consumer: str) -> tuple[str | int, ...]:
    """Compose the command that acknowledges, deletes and counts entries that a consumer stored: all or nothing."""
    return ("EVAL", _TAKE_OUT, 3, stream, ACCOUNT, STORED, GROUP, consumer, *ids)


def rebuild_if_in_future(client: Redis, step_milliseconds: int) -> list[str]:
    """Make each stream anew that is empty and whose ids lie in the future; return which were.

    `step_milliseconds` is how far they may. Raises redis-py's errors.
    """
    rebuilt = []
    for stream, group in ((INBOX, [GROUP]), (SESSIONS, [])):
        if client.eval(_REBUILD, 2, stream, ACCOUNT, step_milliseconds, *group):
            rebuilt.append(stream)
    return rebuilt


@dataclass(frozen=True, slots=True)
class Sample:
    """The counters at one moment."""

    at_seconds: float
    """Redis's time, since 1970."""
    life: str | None
    """The account's; samples of two lives have nothing to do with each other."""
    added: int
    taken: int
    workers: dict[str, int]
    """What each worker took out, by its name."""


@dataclass(frozen=True, slots=True)
class Flow:
    """Messages a second, over some seconds; None where that isn't known."""

    arrival_rate: float | None = None
    drain_rate: float | None = None
    worker_rates: Mapping[str, float] | None = None

    def seconds_to_empty(self, backlog: int) -> float | None:
        """Return how long the inbox takes to be empty if all goes on as it does; None if it never will be."""
        if not backlog:
            return 0.0
        if self.arrival_rate is None or self.drain_rate is None or self.drain_rate <= self.arrival_rate:
            return None
        return backlog / (self.drain_rate - self.arrival_rate)


def read_sample(client: Redis) -> Sample:
    """Return the counters as they are now. Raises redis-py's errors."""
    with client.pipeline(transaction=True) as pipe:
        pipe.time()
        pipe.hmget(ACCOUNT, "life", "taken")
        pipe.hgetall(STORED)
        pipe.xinfo_stream(INBOX)
        pipe.xinfo_stream(SESSIONS)
        time, (life, taken), workers, *streams = pipe.execute(raise_on_error=False)
    # An error is "no such key": nothing ever came.
    added = [int(stream.get("entries-added", 0)) for stream in streams if not isinstance(stream, ResponseError)]
    return Sample(
        at_seconds=milliseconds_of(time) / 1000,
        life=None if life is None else as_text(life),
        added=sum(added),
        taken=int(taken or 0),
        workers={as_text(name): int(count) for name, count in workers.items()},
    )


def flow(before: Sample, after: Sample) -> Flow:
    """Return the rates between two looks.

    None of what can't be told: too little time, or a stream or an account that was made anew in between.
    """
    seconds = after.at_seconds - before.at_seconds
    if seconds < SHORTEST_SECONDS or before.life != after.life:
        return Flow()
    return Flow(
        _rate(after.added - before.added, seconds),
        _rate(after.taken - before.taken, seconds),
        {
            name: rate
            for name, count in after.workers.items()
            if (rate := _rate(count - before.workers.get(name, 0), seconds)) is not None
        },
    )


def _rate(difference: int, seconds: float) -> float | None:
    return None if difference < 0 else difference / seconds
