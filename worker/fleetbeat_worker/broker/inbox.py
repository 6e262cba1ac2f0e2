"""The inbox: the Redis stream that agents write to, read by the workers through one consumer group.

What is in the stream is what is not yet in SQL: an entry is acknowledged and deleted, in one step, after the commit of
the transaction that stored it. An entry that was delivered to a consumer and not acknowledged is *pending*. Its
delivery count tells how many of its holders died: it is one when an entry is read, and rises by one each time that it
is taken over from a holder that died, never otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from redis import Redis
from redis.exceptions import ResponseError

from fleetbeat_shared.redis_keys import FIELD, GROUP, INBOX
from fleetbeat_worker.broker.accounting import (
    Account,
    open_account,
    read_account,
    rebuild_if_in_future,
    take_out,
    take_out_command,
)
from fleetbeat_worker.broker.errand import Errand
from fleetbeat_worker.rules.spans import from_milliseconds, to_milliseconds

READ_STEP = 100
"""How many entries are read with one command."""
READ_BYTES = 4 * 1024 * 1024
"""After how many bytes a batch takes no further step."""

CLOCK_STEP_MILLISECONDS = 60_000
"""Ids may lie this far in the future without anybody's fault: Redis goes on counting when its clock is set back."""

READER_SECONDS = 1.0
"""A consumer that asked for entries within this time is there and will take the next ones."""

_FIELD = FIELD.encode()

_SEQUENCE_BITS = 20
_SEQUENCE_MAX = (1 << _SEQUENCE_BITS) - 1

# A consumer with pending entries must stay: deleting it would drop them. Only a script can look and delete in one step.
_LEAVE = """
local pending = redis.pcall('XPENDING', KEYS[1], ARGV[1], '-', '+', 1, ARGV[2])
if pending.err then return 1 end  -- no such group: nobody is in it
if #pending > 0 then return 0 end
return redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2]) + 1
"""


class Entry(NamedTuple):
    """One entry of the stream."""

    id: str
    wire: bytes
    """The message's bytes."""
    first_read_at: int | None = None
    """When it was read for the first time, if that is not now: milliseconds since 1970."""

    @property
    def milliseconds(self) -> int:
        """When Redis received it, since 1970; a sender that gave an explicit id may have made it up."""
        return int(self.id.partition("-")[0])

    def arrival(self, now: int) -> tuple[int, int]:
        """Return when Redis received it, but not after `now` whatever the id says, and its place in the stream's order.

        Both times are milliseconds since 1970; the place is an integer that SQL can hold.
        """
        milliseconds, _, sequence = self.id.partition("-")
        received_at = int(milliseconds)
        if self.first_read_at is not None:
            now = self.first_read_at
        place_at = received_at if is_credible(received_at, now) else now
        return min(received_at, now), place_at << _SEQUENCE_BITS | min(int(sequence), _SEQUENCE_MAX)


def is_credible(received_at: int, now: int) -> bool:
    """Return whether Redis's clock can have given an id of this time by `now` (milliseconds since 1970).

    Else some sender made it up, or the clock was set back by more than a step since.
    """
    return received_at <= now + CLOCK_STEP_MILLISECONDS


def is_credible_place(place: int, now: int) -> bool:
    """Return whether a place in the stream's order is one that Redis's clock can have given by `now`."""
    return is_credible(place_milliseconds(place), now)


def place_milliseconds(place: int) -> int:
    """Return when what has a place in the stream's order was received, in milliseconds since 1970."""
    return place >> _SEQUENCE_BITS


def known_by(oldest: int, now: int) -> int | None:
    """Return before when all that was received is in SQL, by the id of the oldest entry; None if nobody knows.

    All in milliseconds since 1970.
    """
    if not is_credible(oldest, now):
        return None
    # If it runs ahead the clock was set back, and ids stand still: it came at some time since then.
    return oldest if oldest <= now else oldest - CLOCK_STEP_MILLISECONDS


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
    """All that was received before it is in SQL. None if the oldest entry's id lies in the future, where only a sender
    that gave an explicit id can have put it: then nobody knows when anything in the inbox was received."""
    backlog: int
    """Entries that are not in SQL yet."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What waits to be ingested, and who is there to do it."""

    undelivered: int
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

    def read(self, consumer: str, count: int, block_seconds: float) -> list[Entry]:
        """Take entries that nobody took, waiting for the first one for a time.

        They are taken in steps, and fewer than `count` if they are large: a flood of them can't fill the memory.
        """
        entries = self._read_step(consumer, min(count, READ_STEP), max(1, int(block_seconds * 1000)))
        taken, size = len(entries), _size(entries)
        while taken == READ_STEP and len(entries) < count and size < READ_BYTES:
            step = self._read_step(consumer, min(count - len(entries), READ_STEP), None)
            entries += step
            taken, size = len(step), size + _size(step)
        return entries

    def _read_step(self, consumer: str, count: int, block_milliseconds: int | None) -> list[Entry]:
        return _entries_read(
            self._client.xreadgroup(GROUP, consumer, {INBOX: ">"}, count=count, block=block_milliseconds)
        )

    def send_for(self, consumer: str, count: int, done: Sequence[str]) -> Errand:
        """Acknowledge entries that are in SQL, if there are any, and take others: Redis does so from now on."""
        reads = [
            ("XREADGROUP", "GROUP", GROUP, consumer, "COUNT", min(READ_STEP, count - start), "STREAMS", INBOX, ">")
            for start in range(0, count, READ_STEP)
        ]
        return Errand(self._client, [take_out_command(done, consumer) if done else ("PING",), *reads])

    def fetch(self, errand: Errand) -> tuple[list[Entry], bool]:
        """Return the entries that were sent for, and whether they are all that came: of large ones some stay pending.

        When this raises ResponseError nothing came; with other errors nobody knows.
        """
        entries: list[Entry] = []
        size = 0
        try:
            errand.next()
            while errand.to_come and size < READ_BYTES:
                step = _entries_read(errand.next())
                entries += step
                size += _size(step)
            return entries, not errand.to_come
        finally:
            errand.end()

    def pending_of(self, consumer: str, count: int) -> list[Pending]:
        """Return the oldest entries in a consumer's hands."""
        return _pending(self._client.xpending_range(INBOX, GROUP, "-", "+", count, consumername=consumer))

    def expired(self, lease_seconds: float, count: int) -> list[Pending]:
        """Return the oldest entries whose holders gave no sign of life for the time of a lease."""
        idle = int(lease_seconds * 1000)
        return _pending(self._client.xpending_range(INBOX, GROUP, "-", "+", count, idle=idle))

    def take_over(self, consumer: str, ids: Sequence[str], idle_seconds: float) -> list[Entry]:
        """Take pending entries that were idle for a time; each one's delivery count rises by one.

        Entries that another took first, or that are gone from the stream, are not in the answer. As they are read in
        steps, only the first of them are taken if they are large.
        """
        idle = int(idle_seconds * 1000)
        entries: list[Entry] = []
        for start in range(0, len(ids), READ_STEP):
            entries += _entries(self._client.xclaim(INBOX, GROUP, consumer, idle, list(ids[start : start + READ_STEP])))
            if _size(entries) >= READ_BYTES:
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
        take_out(self._client, ids, consumer)

    def account(self) -> Account:
        """Return whether anything left the inbox that no worker took out."""
        return read_account(self._client)

    def leave(self, consumer: str) -> bool:
        """Remove a consumer unless entries are in its hands; return whether it is gone."""
        return bool(self._client.eval(_LEAVE, 1, INBOX, GROUP, consumer))

    def rebuild_if_in_future(self) -> bool:
        """Make the empty stream anew if a sender pushed its ids into the future; return whether that was done."""
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
                self.leave(_text(consumer["name"]))

    def horizon(self) -> Horizon:
        """Return how far SQL can know. Read it before SQL: what was committed in between is then only newer.

        The time is read first, so that whatever arrives after it is later than the watermark.
        """
        with self._client.pipeline(transaction=True) as pipe:
            pipe.time()
            pipe.xrange(INBOX, count=1)
            pipe.xlen(INBOX)
            (seconds, microseconds), oldest, backlog = pipe.execute()
        now = from_milliseconds(seconds * 1000 + microseconds // 1000)
        if not oldest:
            return Horizon(now, watermark=now, backlog=backlog)
        (entry,) = _entries(oldest)
        watermark = known_by(entry.milliseconds, to_milliseconds(now))
        return Horizon(now, None if watermark is None else from_milliseconds(watermark), backlog)

    def last_id(self) -> str | None:
        """Return the id of the newest entry, or None if there is none."""
        newest = self._client.xrevrange(INBOX, count=1)
        return _text(newest[0][0]) if newest else None

    def first_id(self) -> str | None:
        """Return the id of the oldest entry, or None if there is none."""
        oldest = self._client.xrange(INBOX, count=1)
        return _text(oldest[0][0]) if oldest else None

    def holds_through(self, entry_id: str) -> bool:
        """Return whether an entry up to and including this one is still there."""
        return bool(self._client.xrange(INBOX, max=entry_id, count=1))

    def demand(self, lease_seconds: float) -> Demand:
        """Return what waits and who reads."""
        with self._client.pipeline(transaction=True) as pipe:
            pipe.xlen(INBOX)
            pipe.xpending(INBOX, GROUP)
            pipe.xpending_range(INBOX, GROUP, "-", "+", 1, idle=int(lease_seconds * 1000))
            pipe.xinfo_consumers(INBOX, GROUP)
            pipe.xinfo_groups(INBOX)
            pipe.xrevrange(INBOX, count=1)
            length, summary, expired, consumers, groups, newest = pipe.execute()
        readers = sum(consumer["idle"] < READER_SECONDS * 1000 for consumer in consumers)
        pending = summary["pending"]
        delivered = next(_order(group["last-delivered-id"]) for group in groups if _text(group["name"]) == GROUP)
        # The difference alone is too small when a sender trimmed entries that are pending.
        waits = bool(newest) and _order(newest[0][0]) > delivered
        return Demand(max(int(waits), length - pending), pending, readers, bool(expired))

    def wait_for_entry(self, seconds: float) -> None:
        """Return when the stream has an entry, or after a time."""
        self._client.xread({INBOX: "0-0"}, count=1, block=max(1, int(seconds * 1000)))


def is_missing(error: ResponseError) -> bool:
    """Return whether a command failed because the stream or the group isn't there: not yet, or not any more."""
    return "NOGROUP" in str(error) or "no such key" in str(error)


def _entries(answer: Iterable[Any]) -> list[Entry]:
    return [Entry(_text(entry_id), _wire(fields)) for entry_id, fields in answer if fields is not None]


def _size(entries: Iterable[Entry]) -> int:
    return sum(len(entry.wire) for entry in entries)


def _entries_read(answer: Any) -> list[Entry]:  # noqa: ANN401 - XREADGROUP's, as it comes
    if not answer:
        return []
    # One stream, in a list (RESP2) or a dictionary (RESP3): of each entry the id, and names and values in turn.
    ((_, found),) = answer.items() if isinstance(answer, dict) else answer
    return [Entry(_text(entry_id), _wire_of(said)) for entry_id, said in found if said is not None]


def _wire_of(said: list[bytes]) -> bytes:
    return said[1] if len(said) == 2 and said[0] == _FIELD else _wire(dict(zip(said[::2], said[1::2], strict=True)))  # noqa: PLR2004 - a name and a value


def _wire(fields: dict[bytes, bytes]) -> bytes:
    wire = fields.get(_FIELD)
    # An entry without our field is no message; it is set aside with what it has.
    return wire if wire is not None else b" ".join(name + b"=" + value for name, value in fields.items())


def _pending(answer: Iterable[Any]) -> list[Pending]:
    return [Pending(_text(item["message_id"]), item["times_delivered"]) for item in answer]


def _order(entry_id: bytes | str) -> tuple[int, int]:
    milliseconds, _, sequence = _text(entry_id).partition("-")
    return int(milliseconds), int(sequence)


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
