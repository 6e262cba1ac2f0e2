"""The inbox: the Redis stream that agents add their heartbeats to, read by the workers through one consumer group.

What is in the stream is what is not yet in SQL: an entry is acknowledged and deleted, in one step, after the commit of
the transaction that stored it. An entry that was delivered to a consumer and not acknowledged is *pending*. Its
delivery count tells how many of its holders died: it is one when an entry is read, and rises by one each time that it
is taken over from a holder that died, never otherwise. What waits is counted for the inbox and the lane together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from redis import Redis
from redis.exceptions import ResponseError

from fleetbeat_shared.redis_keys import GROUP, INBOX, SESSIONS
from fleetbeat_worker.broker.accounting import (
    Account,
    open_account,
    read_account,
    rebuild_if_in_future,
    take_out_command,
)
from fleetbeat_worker.broker.entries import (
    CLOCK_STEP_MILLISECONDS,
    RawEntry,
    entries_of,
    entries_read,
    known_by,
    order_of,
    size_of,
    text_of,
)
from fleetbeat_worker.broker.server import milliseconds_of
from fleetbeat_worker.rules.spans import from_milliseconds

READ_STEP = 100
"""How many entries are read with one command."""
READ_BYTES = 4 * 1024 * 1024
"""After how many bytes a batch takes no further step."""

READER_SECONDS = 1.0
"""A consumer that asked for entries within this time is there and will take the next ones."""

# A consumer with pending entries must stay: deleting it would drop them. Only a script can look and delete in one step.
_LEAVE = """
local pending = redis.pcall('XPENDING', KEYS[1], ARGV[1], '-', '+', 1, ARGV[2])
if pending.err then return 1 end  -- no such group: nobody is in it
if #pending > 0 then return 0 end
return redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2]) + 1
"""


@dataclass(frozen=True, slots=True)
class Pending:
    """An entry in some consumer's hands."""

    id: str
    deliveries: int


@dataclass(frozen=True, slots=True)
class Horizon:
    """How far SQL can know, at one moment."""

    now: datetime
    """Redis's time."""
    watermark: datetime | None
    """All that was received before it is in SQL. None if the oldest id of the inbox or the lane lies in the future,
    where only a sender that gave an explicit id can have put it: when entries were received is unknown then."""
    backlog: int
    """Entries that are not in SQL yet, in the inbox and in the lane."""
    oldest_id: str | None = None
    """The id of the oldest of them."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What waits to be ingested, and who is there to do it."""

    undelivered: int
    """Entries that no worker took: of the inbox, and all of the lane."""
    pending: int
    """Entries in somebody's hands, alive or dead."""
    readers: int
    expired: bool
    """Whether a dead consumer's entries wait to be taken over."""


class Inbox:
    """The stream, through one Redis client. Its methods raise redis-py's errors."""

    def __init__(self, client: Redis) -> None:
        self._client: Any = client  # redis-py's hints can't tell its sync answers from its async ones
        # As it comes: making a dictionary for each entry took as long as validating it.
        client.set_response_callback("XREADGROUP", lambda answer, **_: answer)

    def create_group(self) -> None:
        """Make the stream and the group unless they are there; the group begins with the oldest entry."""
        open_account(self._client)

    def read(self, consumer: str, count: int, block_seconds: float) -> list[RawEntry]:
        """Take entries that nobody took, waiting for the first one for a time.

        They are taken in steps, and fewer than `count` if they are large: a flood of them can't fill the memory.
        """
        entries = self._read_step(consumer, min(count, READ_STEP), max(1, int(block_seconds * 1000)))
        taken, size = len(entries), size_of(entries)
        while taken == READ_STEP and len(entries) < count and size < READ_BYTES:
            step = self._read_step(consumer, min(count - len(entries), READ_STEP), None)
            entries += step
            taken, size = len(step), size + size_of(step)
        return entries

    def _read_step(self, consumer: str, count: int, block_milliseconds: int | None) -> list[RawEntry]:
        return entries_read(
            self._client.xreadgroup(GROUP, consumer, {INBOX: ">"}, count=count, block=block_milliseconds)
        )

    def pending_of(self, consumer: str, count: int) -> list[Pending]:
        """Return the oldest entries in a consumer's hands."""
        return _pending(self._client.xpending_range(INBOX, GROUP, "-", "+", count, consumername=consumer))

    def expired(self, lease_seconds: float, count: int) -> list[Pending]:
        """Return the oldest entries whose holders gave no sign of life for the time of a lease."""
        idle = int(lease_seconds * 1000)
        return _pending(self._client.xpending_range(INBOX, GROUP, "-", "+", count, idle=idle))

    def take_over(self, consumer: str, ids: Sequence[str], idle_seconds: float) -> list[RawEntry]:
        """Take pending entries that were idle for a time; each one's delivery count rises by one.

        Entries that another took first, or that are gone from the stream, are not in the answer. As they are read in
        steps, only the first of them are taken if they are large.
        """
        idle = int(idle_seconds * 1000)
        entries: list[RawEntry] = []
        for start in range(0, len(ids), READ_STEP):
            some = list(ids[start : start + READ_STEP])
            entries += entries_of(self._client.xclaim(INBOX, GROUP, consumer, idle, some))
            if size_of(entries) >= READ_BYTES:
                break
        return entries

    def renew(self, consumer: str, ids: Sequence[str]) -> None:
        """Say that the holder lives: the leases begin anew, the delivery counts stay."""
        self._client.xclaim(INBOX, GROUP, consumer, 0, list(ids), idle=0, justid=True)

    def release(self, consumer: str, ids: Sequence[str], lease_seconds: float, deliveries: int) -> None:
        """Lay entries down for anybody to take at once, with the delivery count that they had before."""
        idle = int(lease_seconds * 1000)
        self._client.xclaim(INBOX, GROUP, consumer, 0, list(ids), idle=idle, retrycount=deliveries, justid=True)

    def acknowledge(self, ids: Sequence[str], consumer: str) -> None:
        """Remove entries that a consumer stored in SQL: acknowledged, deleted and counted, or nothing of it."""
        self._client.execute_command(*take_out_command(INBOX, ids, consumer))

    def account(self) -> Account:
        """Read whether anything left the inbox or the lane that no worker took out."""
        return read_account(self._client)

    def leave(self, consumer: str) -> bool:
        """Remove a consumer unless entries are in its hands; return whether it is gone."""
        return bool(self._client.eval(_LEAVE, 1, INBOX, GROUP, consumer))

    def rebuild_if_in_future(self) -> list[str]:
        """Make each empty stream anew whose ids a sender pushed into the future; return which were."""
        return rebuild_if_in_future(self._client, CLOCK_STEP_MILLISECONDS)

    def remove_idle_consumers(self, idle_seconds: float) -> None:
        """Remove the consumers that dead workers left behind, as far as nothing is in their hands."""
        try:
            consumers = self._client.xinfo_consumers(INBOX, GROUP)
        except ResponseError as error:
            if not is_missing(error):
                raise
            return
        for consumer in consumers:
            if consumer["pending"] == 0 and consumer["idle"] > idle_seconds * 1000:
                self.leave(text_of(consumer["name"]))

    def horizon(self) -> Horizon:
        """Read how far SQL can know. Read it before SQL: what was committed in between is then only newer.

        The time is read first, so that whatever arrives after it is later than the watermark.
        """
        with self._client.pipeline(transaction=True) as pipe:
            pipe.time()
            for stream in (INBOX, SESSIONS):
                pipe.xlen(stream)
                pipe.xrange(stream, count=1)
            time, backlog, oldest, lane_backlog, oldest_of_lane = pipe.execute()
        now, backlog = milliseconds_of(time), backlog + lane_backlog
        ids = sorted((text_of(entry_id) for entry_id, _ in [*oldest, *oldest_of_lane]), key=order_of)
        watermark: int | None = now
        for entry_id in ids:
            known = known_by(entry_id, now)
            watermark = None if watermark is None or known is None else min(watermark, known)
        known_at = None if watermark is None else from_milliseconds(watermark)
        return Horizon(from_milliseconds(now), known_at, backlog, ids[0] if ids else None)

    def last_ids(self) -> dict[str, str]:
        """Read the id of the newest entry of each stream that has any."""
        newest = {stream: self._client.xrevrange(stream, count=1) for stream in (INBOX, SESSIONS)}
        return {stream: text_of(found[0][0]) for stream, found in newest.items() if found}

    def holds_through(self, last_ids: Mapping[str, str]) -> bool:
        """Tell whether any entry up to and including these is still there."""
        return any(self._client.xrange(stream, max=entry_id, count=1) for stream, entry_id in last_ids.items())

    def demand(self, lease_seconds: float) -> Demand:
        """Return what waits and who reads."""
        with self._client.pipeline(transaction=True) as pipe:
            pipe.xlen(INBOX)
            pipe.xlen(SESSIONS)
            pipe.xpending(INBOX, GROUP)
            pipe.xpending_range(INBOX, GROUP, "-", "+", 1, idle=int(lease_seconds * 1000))
            pipe.xinfo_consumers(INBOX, GROUP)
            pipe.xinfo_groups(INBOX)
            pipe.xrevrange(INBOX, count=1)
            length, lane_backlog, summary, expired, consumers, groups, newest = pipe.execute()
        readers = sum(consumer["idle"] < READER_SECONDS * 1000 for consumer in consumers)
        pending = summary["pending"]
        delivered = next(order_of(group["last-delivered-id"]) for group in groups if text_of(group["name"]) == GROUP)
        # The difference alone is too small when a sender trimmed entries that are pending.
        waits = bool(newest) and order_of(newest[0][0]) > delivered
        return Demand(lane_backlog + max(int(waits), length - pending), pending, readers, bool(expired))

    def wait_for_entry(self, seconds: float) -> None:
        """Return when the inbox or the lane has an entry, or after a time."""
        self._client.xread({INBOX: "0-0", SESSIONS: "0-0"}, count=1, block=max(1, int(seconds * 1000)))


def is_missing(error: ResponseError) -> bool:
    """Return whether a command failed because the stream or the group isn't there: not yet, or not any more."""
    return "NOGROUP" in str(error) or "no such key" in str(error)


def _pending(answer: Iterable[Any]) -> list[Pending]:
    return [Pending(text_of(item["message_id"]), item["times_delivered"]) for item in answer]
