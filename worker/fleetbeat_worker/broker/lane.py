"""The lane: the stream of registrations and deregistrations, which are applied one after the other, in their order.

There is no consumer group: at most one worker applies the lane at a time, as it holds a lock in SQL meanwhile. It takes
the oldest entries, stores what they change, and removes them after the commit. So an entry that is still there was not
applied, or its worker died before it removed it; the ids of messages in SQL tell the two apart.

A worker notes beside the stream how many entries it has in hand. Where that note is left the worker died with them: as
many are handed out one by one then, and an entry with which DEATHS_ALONE workers running died alone is poison. Failures
that a worker survives erase the note: a database or a Redis that is away is no fault of a message.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, NamedTuple

from redis import Redis
from redis.exceptions import OutOfMemoryError

from fleetbeat_shared.redis_keys import SESSIONS, SESSIONS_IN_HAND
from fleetbeat_worker.broker.accounting import take_out_command
from fleetbeat_worker.broker.entries import Entry, decode, entries_of, leave_undecoded
from fleetbeat_worker.broker.server import milliseconds_of

PIECE = 100
"""How many entries are applied in one transaction: a flood of them neither fills memory nor holds its lock for long."""
DEATHS_ALONE = 3
"""After how many deaths of workers that had it alone in hand an entry is poison."""


class Piece(NamedTuple):
    """The oldest entries of the lane, in one worker's hands."""

    entries: list[Entry]
    is_poison: bool
    """Whether the only entry is deadly, and must be set aside undecoded."""
    now: int
    """Redis's time in milliseconds."""


class Lane:
    """The lane, through one Redis client. Its methods raise redis-py's errors."""

    def __init__(self, client: Redis, consumer: str) -> None:
        """Count what is removed for the worker `consumer`."""
        self._client: Any = client  # redis-py's hints can't tell its sync answers from its async ones
        self._consumer = consumer
        self._suspects = 0

    def backlog(self) -> int:
        """Count the entries that are not applied, or not removed yet."""
        return int(self._client.xlen(SESSIONS))

    def take(self) -> Piece:
        """Take the oldest entries in hand. Only with SQL's lock, so that no other worker has them."""
        with self._client.pipeline(transaction=True) as pipe:
            pipe.time()
            pipe.hgetall(SESSIONS_IN_HAND)
            pipe.xrange(SESSIONS, count=PIECE)
            time, noted, answer = pipe.execute()
        now, found = milliseconds_of(time), entries_of(answer)
        if not found:
            return Piece([], is_poison=False, now=now)
        note = {name.decode(): value.decode() for name, value in noted.items()}
        died_with, first = int(note.get("in_hand", 0)), found[0].id
        deaths = int(note.get("deaths", 0)) if note.get("first") == first else 0
        if died_with == 1 and note.get("first") == first:
            deaths += 1
        self._suspects = max(int(note.get("suspects", 0)), died_with)
        if self._suspects:
            found = found[:1]
        note = {"in_hand": len(found), "first": first, "deaths": deaths, "suspects": self._suspects}
        with suppress(OutOfMemoryError):  # without the note a death is not counted
            self._client.hset(SESSIONS_IN_HAND, mapping=note)
        is_poison = deaths >= DEATHS_ALONE
        entries = leave_undecoded(found, now, SESSIONS) if is_poison else decode(found, now, SESSIONS)
        return Piece(entries, is_poison, now)

    def remove(self, entries: list[Entry]) -> None:
        """Remove entries that are stored, and count them."""
        self._client.execute_command(*take_out_command(SESSIONS, [entry.id for entry in entries], self._consumer))
        if not self._suspects:
            return
        self._suspects = max(0, self._suspects - len(entries))
        if not self._suspects:
            self._client.delete(SESSIONS_IN_HAND)
            return
        with suppress(OutOfMemoryError):  # then some more than need be are taken one by one
            self._client.hset(SESSIONS_IN_HAND, "suspects", self._suspects)

    def release(self) -> None:
        """Erase the note: the entries in hand are stored, or couldn't be stored now, which is no fault of theirs."""
        if self._suspects:
            self._client.hdel(SESSIONS_IN_HAND, "in_hand")
        else:
            self._client.delete(SESSIONS_IN_HAND)
